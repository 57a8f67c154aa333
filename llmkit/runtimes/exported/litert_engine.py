"""LiteRT models, run on the CPU by LiteRT's compiled models."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import MANIFEST
from llmkit.formats.exported import ExportedModel
from llmkit.formats.silence import silence
from llmkit.formats.tflite import check_tflite
from llmkit.runtimes.exported.engine import FixedEngine, engine_errors

_Details: TypeAlias = "dict[str, tuple[tuple[int, ...], np.dtype[Any]]]"  # shapes and types by name


def open_engine(model: ExportedModel, n_threads: int, device: str) -> LiteRtEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "ai-edge-litert", "litert"):
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.cpu_options import CpuOptions
        from ai_edge_litert.options import Options

        path = model.file()
        check_tflite(path)
        options = Options(cpu_options=CpuOptions(num_threads=n_threads))
        with silence():  # it logs which accelerators it looks for
            compiled = CompiledModel.from_file(str(path), options=options)
            return LiteRtEngine(compiled, model)


class LiteRtEngine(FixedEngine):
    """Two functions on the same buffers: what a cache is read from is what it is written to, and nothing is copied."""

    def __init__(self, compiled: Any, model: ExportedModel) -> None:
        super().__init__(model)
        self.name = f"LiteRT {version('ai-edge-litert')}"
        self._compiled = compiled
        self._ids, self._positions, *caches = _names(model, "arguments")
        self._logits, *results = _names(model, "results")
        if caches != results or len(caches) != 2 * model.cache_shape[0]:
            raise FormatError(model.path / MANIFEST, "arguments and results must name the same caches, two a layer")
        shape = model.cache_shape[1:]
        sizes = {"prefill": model.tokens_at_once, "decode": 1}
        integers, floats = np.dtype(np.int32), np.dtype(np.float32)
        expected = dict.fromkeys(caches, (shape, floats))
        for use, n in sizes.items():
            inputs = {self._ids: ((1, n), integers), self._positions: ((n,), integers)}
            _require(model, use, compiled.get_input_tensor_details(use), inputs | expected)
            outputs = {self._logits: ((1, n, model.n_vocab), floats)}
            _require(model, use, compiled.get_output_tensor_details(use), outputs | expected)
        cache = {name: compiled.create_input_buffer_by_name("decode", name) for name in caches}
        for buffer in cache.values():
            buffer.write(np.zeros(shape, np.float32))  # what nothing looks at is multiplied by 0
        make_input, make_output = compiled.create_input_buffer_by_name, compiled.create_output_buffer_by_name
        self._inputs = {
            use: {name: make_input(use, name) for name in (self._ids, self._positions)} | cache for use in sizes
        }
        self._outputs = {use: {self._logits: make_output(use, self._logits)} | cache for use in sizes}

    def _call(self, use: str, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        with engine_errors(self._model, "failed", "ai-edge-litert", "litert"):
            inputs, outputs, shape = self._inputs[use], self._outputs[use], (len(ids), self._model.n_vocab)
            inputs[self._ids].write(ids[None].astype(np.int32))
            inputs[self._positions].write(np.arange(position, position + len(ids), dtype=np.int32))
            self._compiled.run_by_name(use, inputs, outputs)
            rows: NDArray[np.float32] = outputs[self._logits].read(prod(shape), np.float32).reshape(shape)
        return rows

    def close(self) -> None:
        with silence():
            self._inputs.clear()
            self._outputs.clear()
            environment = self._compiled.environment
            self._compiled.close()
            environment.close()


def _names(model: ExportedModel, key: str) -> list[str]:
    found = model.values.get(key)
    if not isinstance(found, list) or len(found) < 3 or not all(isinstance(name, str) for name in found):
        raise FormatError(model.path / MANIFEST, f"{key} must be a list of names, found {found!r:.100}")
    return found


def _require(model: ExportedModel, use: str, details: Mapping[str, Any], wanted: _Details) -> None:
    """Raise FormatError if the model's tensors are not those of llmkit.json, by which arrays are made."""
    found = {name: (tuple(one["shape"]), np.dtype(one["dtype"])) for name, one in details.items()}
    if found != wanted:
        differing = sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name))
        raise FormatError(model.file(), f"{use}: {MANIFEST} describes {', '.join(differing):.100} otherwise")
