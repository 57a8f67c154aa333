"""OpenVINO models with their keys and values as state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.runtimes.exported.engine import engine_errors


def open_engine(model: ExportedModel, n_threads: int, device: str) -> OpenVinoEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "openvino", "openvino"):
        import openvino

        # As exact as the model: by default OpenVINO would keep keys and values in 8 bits.
        exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        settings = {"INFERENCE_NUM_THREADS": n_threads, "PERFORMANCE_HINT": "LATENCY", **exact}
        compiled = openvino.Core().compile_model(str(model.file()), "CPU", settings)
        request = compiled.create_infer_request()
    return OpenVinoEngine(openvino, request, model)


class OpenVinoEngine:
    """A request whose state is the cache."""

    device = "cpu"

    def __init__(self, engine: Any, request: Any, model: ExportedModel) -> None:
        self._engine = engine
        self._request = request
        self._model = model
        self._n_cached = 0
        self.name = f"OpenVINO {engine.__version__.partition('-')[0]}"

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        with engine_errors(self._model, "failed", "openvino", "openvino"):
            if position != self._n_cached:
                self._cut(position)
            end = position + len(ids)
            self._request.infer(
                {
                    "input_ids": ids[None],
                    "attention_mask": np.ones((1, end), np.int64),
                    "position_ids": np.arange(position, end)[None],
                    "beam_idx": np.zeros(1, np.int32),
                }
            )
            self._n_cached = end
            rows: NDArray[np.float32] = self._request.get_tensor("logits").data[0]
        return rows

    def _cut(self, position: int) -> None:
        """Keep the first tokens only."""
        if position == 0:
            self._request.reset_state()
            return
        for variable in self._request.query_state():
            kept = np.ascontiguousarray(variable.state.data[:, :, :position])
            variable.state = self._engine.Tensor(kept)

    def close(self) -> None:
        self._request = None
