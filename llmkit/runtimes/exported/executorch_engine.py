"""ExecuTorch's programs, by its runtime for Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.formats.silence import quietly, silence
from llmkit.runtimes.exported.engine import FixedEngine, engine_errors

_models_loaded: Final[list[Path]] = []


def open_engine(model: ExportedModel, n_threads: int, device: str) -> ExecutorchEngine:
    """Load the model. The first one of a process determines its threads.

    Raises FormatError, EngineError, DependencyError.
    """
    with engine_errors(model, "cannot load it", "executorch", "executorch"), quietly(), silence():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime, Verification

        if not _models_loaded:  # others that are loaded hold on to the threads there are
            portable_lib._unsafe_reset_threadpool(n_threads)
        program = Runtime.get().load_program(model.file(), verification=Verification.InternalConsistency)
        _models_loaded.append(model.path)
        return ExecutorchEngine(program, model)


class ExecutorchEngine(FixedEngine):
    """Methods that keep keys and values."""

    def __init__(self, program: Any, model: ExportedModel) -> None:
        import torch
        from executorch.version import __version__

        super().__init__(model)
        self._torch = torch
        self._program = program
        self._methods = {use: program.load_method(use) for use in ("prefill", "decode")}
        self.name = f"ExecuTorch {__version__}, XNNPACK"

    def _call(self, use: str, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        torch = self._torch
        with engine_errors(self._model, "failed", "executorch", "executorch"):
            (logits,) = self._methods[use].execute([torch.from_numpy(ids)[None], torch.tensor(position)])
            rows: NDArray[np.float32] = logits[0].numpy()
        return rows

    def close(self) -> None:
        self._methods.clear()
        self._program = None
