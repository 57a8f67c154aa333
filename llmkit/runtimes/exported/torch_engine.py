"""PyTorch's exported programs and TorchScript."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.formats.silence import quietly
from llmkit.formats.torchprograms import check_program, check_script
from llmkit.runtimes._options import choose_cuda
from llmkit.runtimes.exported.engine import engine_errors


def open_engine(model: ExportedModel, n_threads: int, device: str) -> TorchEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "torch", "pytorch"), quietly():
        import torch

        torch.set_num_threads(n_threads)
        path = model.file()
        if model.format == "torchscript":
            check_script(path)
            device = "cpu"  # a script's own tensors are made on the device that it was traced on
            program = torch.jit.load(str(path))
        else:
            check_program(path)
            device = choose_cuda(device, torch.cuda.is_available, "torch")
            program = on_device(torch.export.load(path), device)
    return TorchEngine(torch, program, model, device)


def on_device(program: Any, device: str) -> Any:
    """The module of a loaded program, on torch's `device`."""
    if device == "cpu":
        return program.module()
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device).module()


class TorchEngine:
    """A program that writes into the keys and values that it is given."""

    def __init__(self, torch: Any, program: Any, model: ExportedModel, device: str) -> None:
        self._torch = torch
        self._program = program
        self._model = model
        self._cache = [torch.zeros(model.cache_shape, device=device) for _ in range(2)]
        kind = "TorchScript" if model.format == "torchscript" else "torch.export"
        self.device = device
        self.name = f"{kind}, torch {torch.__version__}"

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        torch = self._torch
        with engine_errors(self._model, "failed", "torch", "pytorch"), torch.inference_mode():
            inputs = torch.from_numpy(ids)[None].to(self.device), torch.tensor(position, device=self.device)
            logits, *_ = self._program(*inputs, *self._cache)
            rows: NDArray[np.float32] = logits[0].float().cpu().numpy()
        return rows

    def close(self) -> None:
        self._program = None
        self._cache.clear()
