"""ONNX graphs with explicit keys and values, by ONNX Runtime itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError
from llmkit.formats.exported import ExportedModel
from llmkit.runtimes._options import choose_cuda
from llmkit.runtimes.exported.engine import engine_errors
from llmkit.runtimes.ortcuda import load_cuda_libraries

_CPU = "CPUExecutionProvider"
# Multiplying with 10 bits of mantissa is off: the graph says float32.
_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})


def open_engine(model: ExportedModel, n_threads: int, device: str) -> OrtEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "onnxruntime", "ort"):
        import onnxruntime

        chosen = choose_cuda(device, load_cuda_libraries, "onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3  # errors: of them Python learns, of warnings the terminal
        providers = [_CPU] if chosen == "cpu" else [_CUDA, _CPU]
        session = onnxruntime.InferenceSession(str(model.file()), options, providers=providers)
        if chosen == "cuda" and _CUDA[0] not in session.get_providers():  # it went on without
            if device == "cuda":
                raise EngineError("device cuda: ONNX Runtime found no GPU, or not CUDA's libraries; take --device cpu")
            chosen = "cpu"
    return OrtEngine(onnxruntime, session, model, chosen)


class OrtEngine:
    """Keys and values go out of one run and into the next, as they are and where they are."""

    def __init__(self, engine: Any, session: Any, model: ExportedModel, device: str) -> None:
        self._engine = engine
        self._session = session
        self._model = model
        self._names = [value.name for value in session.get_inputs() if value.name != "input_ids"]
        self._outputs = [value.name for value in session.get_outputs()]
        self._past: list[Any] = []
        self.device = device
        self.name = f"ONNX Runtime {engine.__version__}"

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        with engine_errors(self._model, "failed", "onnxruntime", "ort"):
            if not self._past or self._past[0].shape()[2] != position:
                self._past = [self._value(part) for part in self._kept(position)]
            binding = self._session.io_binding()
            binding.bind_ortvalue_input("input_ids", self._value(ids[None]))
            for name, past in zip(self._names, self._past, strict=True):
                binding.bind_ortvalue_input(name, past)
            for name in self._outputs:
                binding.bind_output(name, self.device)
            self._session.run_with_iobinding(binding)
            logits, *self._past = binding.get_outputs()
            rows: NDArray[np.float32] = logits.numpy()[0]
        return rows

    def _value(self, values: NDArray[Any]) -> Any:
        return self._engine.OrtValue.ortvalue_from_numpy(values, self.device, 0)

    def _kept(self, position: int) -> list[NDArray[np.float32]]:
        """Keys and values of the first tokens."""
        if position:
            return [np.ascontiguousarray(part.numpy()[:, :, :position]) for part in self._past]
        n_layers, _, heads, _, width = self._model.cache_shape
        return [np.empty((1, heads, 0, width), np.float32)] * (2 * n_layers)

    def close(self) -> None:
        self._session = None
        self._past = []
