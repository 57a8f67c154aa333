"""PyTorch's exported programs and TorchScript."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.formats.silence import quietly
from llmkit.formats.torchprograms import check_program, check_script
from llmkit.runtimes.exported.engine import engine_errors


def open_engine(model: ExportedModel, n_threads: int) -> TorchEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "torch", "pytorch"), quietly():
        import torch

        torch.set_num_threads(n_threads)
        path = model.file()
        if model.format == "torchscript":
            check_script(path)
            program = torch.jit.load(str(path))
        else:
            check_program(path)
            program = torch.export.load(path).module()
    return TorchEngine(torch, program, model)


class TorchEngine:
    """A program that writes into the keys and values that it is given."""

    def __init__(self, torch: Any, program: Any, model: ExportedModel) -> None:
        self._torch = torch
        self._program = program
        self._model = model
        self._cache = [torch.zeros(model.cache_shape) for _ in range(2)]
        kind = "TorchScript" if model.format == "torchscript" else "torch.export"
        self.name = f"{kind}, torch {torch.__version__}"

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        torch = self._torch
        with engine_errors(self._model, "failed", "torch", "pytorch"), torch.inference_mode():
            logits, *_ = self._program(torch.from_numpy(ids)[None], torch.tensor(position), *self._cache)
            rows: NDArray[np.float32] = logits[0].float().numpy()
        return rows

    def close(self) -> None:
        self._program = None
        self._cache.clear()
