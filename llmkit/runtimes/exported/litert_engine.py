"""LiteRT models, run by its compiled-model interface on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import MANIFEST
from llmkit.formats.exported import ExportedModel
from llmkit.formats.tflite import check_tflite
from llmkit.runtimes.exported.engine import FixedEngine, engine_errors

_USES: Final = ("prefill", "decode")


def open_engine(model: ExportedModel, n_threads: int) -> LiteRtEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "ai-edge-litert", "litert"):
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.cpu_options import CpuOptions
        from ai_edge_litert.options import Options

        path = model.file()
        check_tflite(path)
        with _quietly():
            compiled = CompiledModel.from_file(
                str(path), options=Options(cpu_options=CpuOptions(num_threads=n_threads))
            )
        return LiteRtEngine(compiled, model)


class LiteRtEngine(FixedEngine):
    """Two functions that are given the same buffers for the cache: what goes in is what comes out, so nothing is copied."""

    def __init__(self, compiled: Any, model: ExportedModel) -> None:
        super().__init__(model)
        self._compiled = compiled
        self._ids, self._positions, *caches = _names(model, "arguments")
        self._logits, *results = _names(model, "results")
        shape = model.cache_shape[1:]
        sizes = {"prefill": model.tokens_at_once, "decode": 1}
        integers, floats = np.dtype(np.int32), np.dtype(np.float32)
        for use, n in sizes.items():
            expected = {
                self._ids: ((1, n), integers),
                self._positions: ((n,), integers),
                **dict.fromkeys(caches, (shape, floats)),
            }
            _require(model, compiled.get_input_tensor_details(use), expected)
            expected = {self._logits: ((1, n, model.n_vocab), floats), **dict.fromkeys(results, (shape, floats))}
            _require(model, compiled.get_output_tensor_details(use), expected)
        if caches != results:
            raise FormatError(model.path / MANIFEST, f"the caches of arguments and results must be the same: {caches}")
        self._cache = {name: compiled.create_input_buffer_by_name("decode", name) for name in caches}
        for buffer in self._cache.values():
            buffer.write(np.zeros(shape, np.float32))  # what is not looked at must still be numbers
        names = (self._ids, self._positions)
        self._inputs = {
            use: {name: compiled.create_input_buffer_by_name(use, name) for name in names} | self._cache
            for use in _USES
        }
        self._outputs = {
            use: {self._logits: compiled.create_output_buffer_by_name(use, self._logits)} | self._cache
            for use in _USES
        }
        from importlib.metadata import version

        self.name = f"LiteRT {version('ai-edge-litert')}"

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
        self._cache.clear()
        self._compiled = None
