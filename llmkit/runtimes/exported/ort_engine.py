"""ONNX graphs with explicit keys and values, by ONNX Runtime itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.runtimes.exported.engine import engine_errors


def open_engine(model: ExportedModel, n_threads: int) -> OrtEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "onnxruntime", "ort"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        session = onnxruntime.InferenceSession(str(model.file()), options, providers=["CPUExecutionProvider"])
    return OrtEngine(onnxruntime, session, model)


class OrtEngine:
    """Keys and values go out of one run and into the next, as they are."""

    def __init__(self, engine: Any, session: Any, model: ExportedModel) -> None:
        self._engine = engine
        self._session = session
        self._model = model
        self._names = [value.name for value in session.get_inputs() if value.name != "input_ids"]
        self._outputs = [value.name for value in session.get_outputs()]
        self._past: list[Any] = []
        self.name = f"ONNX Runtime {engine.__version__}"

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        value = self._engine.OrtValue.ortvalue_from_numpy
        if not self._past or self._past[0].shape()[2] != position:
            self._past = [value(part) for part in self._kept(position)]
        inputs = {"input_ids": value(ids[None]), **dict(zip(self._names, self._past, strict=True))}
        with engine_errors(self._model, "failed", "onnxruntime", "ort"):
            logits, *self._past = self._session.run_with_ort_values(self._outputs, inputs)
        rows: NDArray[np.float32] = logits.numpy()[0]
        return rows

    def _kept(self, position: int) -> list[NDArray[np.float32]]:
        """Keys and values of the first tokens."""
        if position:
            return [np.ascontiguousarray(part.numpy()[:, :, :position]) for part in self._past]
        n_layers, _, heads, _, width = self._model.cache_shape
        return [np.empty((1, heads, 0, width), np.float32)] * (2 * n_layers)

    def close(self) -> None:
        self._session = None
        self._past = []
