"""LiteRT models, run on the CPU by LiteRT's compiled models."""

from __future__ import annotations

from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import MANIFEST
from llmkit.formats.exported import ExportedModel
from llmkit.runtimes.exported.engine import FixedEngine, engine_errors


def open_engine(model: ExportedModel, n_threads: int) -> LiteRtEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "ai-edge-litert", "litert"):
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.cpu_options import CpuOptions
        from ai_edge_litert.options import Options

        options = Options(cpu_options=CpuOptions(num_threads=n_threads))
        # It verifies the file's structure first.
        return LiteRtEngine(CompiledModel.from_file(str(model.file()), options=options), model)


class LiteRtEngine(FixedEngine):
    """Two functions on the same buffers: what the caches are read from is what they are written to, without a copy."""

    def __init__(self, compiled: Any, model: ExportedModel) -> None:
        super().__init__(model)
        self.name = f"LiteRT {version('ai-edge-litert')}"
        self._compiled = compiled
        self._ids, self._positions, *caches = _names(model, "arguments")
        self._logits, *results = _names(model, "results")
        if set(caches) != set(results) or len(caches) != 2 * model.cache_shape[0]:
            raise FormatError(model.path / MANIFEST, "arguments and results must name the same caches, two per layer")
        cache_shape, sizes = model.cache_shape[1:], {"prefill": model.tokens_at_once, "decode": 1}
        for use, n in sizes.items():
            caches_expected = {name: (cache_shape, np.float32) for name in caches}
            ids = {self._ids: ((1, n), np.int32), self._positions: ((n,), np.int32)}
            logits = {self._logits: ((1, n, model.n_vocab), np.float32)}
            _require(model, use, compiled.get_input_tensor_details(use), ids | caches_expected)
            _require(model, use, compiled.get_output_tensor_details(use), logits | caches_expected)
        cache = {name: compiled.create_input_buffer_by_name("decode", name) for name in caches}
        for buffer in cache.values():
            buffer.write(np.zeros(cache_shape, np.float32))  # slots that nothing looks at are multiplied by 0
        names = (self._ids, self._positions)
        self._inputs = {
            use: {name: compiled.create_input_buffer_by_name(use, name) for name in names} | cache for use in sizes
        }
        self._outputs = {
            use: {self._logits: compiled.create_output_buffer_by_name(use, self._logits)} | cache for use in sizes
        }

    def _call(self, use: str, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        with engine_errors(self._model, "failed", "ai-edge-litert", "litert"):
            inputs, outputs, shape = self._inputs[use], self._outputs[use], (len(ids), self._model.n_vocab)
            inputs[self._ids].write(ids[None].astype(np.int32))
            inputs[self._positions].write(np.arange(position, position + len(ids), dtype=np.int32))
            self._compiled.run_by_name(use, inputs, outputs)
            rows: NDArray[np.float32] = outputs[self._logits].read(prod(shape), np.float32).reshape(shape)
        return rows

    def close(self) -> None:
        self._inputs.clear()
        self._outputs.clear()
        self._compiled = None


def _names(model: ExportedModel, key: str) -> list[str]:
    found = model.values.get(key)
    if not isinstance(found, list) or len(found) < 3 or not all(isinstance(name, str) for name in found):
        raise FormatError(model.path / MANIFEST, f"{key} must be a list of names, found {found!r:.100}")
    return found


def _require(
    model: ExportedModel, use: str, details: dict[str, Any], expected: dict[str, tuple[tuple[int, ...], type]]
) -> None:
    """Raise FormatError if the model's tensors are not those that llmkit.json tells of: buffers are sized by these."""
    print(use, list(details.items())[:3]); 
    found = {name: (tuple(one["shape"]), np.dtype(one["dtype"]).type) for name, one in details.items()}
    for name, wanted in expected.items():
        if found.get(name) != wanted:
            raise FormatError(
                model.file(), f"{use}: {name} must be {wanted[1].__name__} {list(wanted[0])}, found {found.get(name)}"
            )
    if len(found) != len(expected):
        raise FormatError(model.file(), f"{use}: has {len(found)} tensors, {MANIFEST} {len(expected)}")
