"""IREE's compiled modules. They are machine code: run those that you trust."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.runtimes.exported.engine import FixedEngine, engine_errors
from llmkit.runtimes.exported.weights import read_weights


def open_engine(model: ExportedModel, n_threads: int, device: str) -> IreeEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError."""
    with engine_errors(model, "cannot load it", "iree", "iree"):
        from importlib.metadata import version

        from iree import runtime

        runtime.flags.parse_flags(f"--task_topology_max_group_count={n_threads}")
        config = runtime.Config("local-task")
        functions = {}
        for use in ("prefill", "decode"):
            context = runtime.SystemContext(config=config)
            module = runtime.VmModule.mmap(context.instance, str(model.file(use)))
            context.add_vm_module(module)
            functions[use] = context.modules[module.name]["main"]
        values = read_weights(model)
        weights = [runtime.asdevicearray(config.device, values[name]) for name in sorted(values)]
        cache = [runtime.asdevicearray(config.device, np.zeros(model.cache_shape, np.float32)) for _ in range(2)]
        return IreeEngine(f"IREE {version('iree-base-runtime')}", functions, weights, cache, model)


class IreeEngine(FixedEngine):
    """Functions that are given weights and cache with every call."""

    def __init__(
        self, name: str, functions: dict[str, Any], weights: list[Any], cache: list[Any], model: ExportedModel
    ) -> None:
        super().__init__(model)
        self.name = name
        self._functions = functions
        self._weights = weights
        self._cache = cache

    def _call(self, use: str, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        with engine_errors(self._model, "failed", "iree", "iree"):
            inputs = (*self._weights, ids[None].astype(np.int32), np.array(position, np.int32))
            logits, *self._cache = self._functions[use](*inputs, *self._cache)
            rows: NDArray[np.float32] = logits.to_host()[0]
        return rows

    def close(self) -> None:
        self._functions.clear()
        self._weights.clear()
        self._cache.clear()
