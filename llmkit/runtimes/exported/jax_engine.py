"""StableHLO, compiled and run by JAX."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.runtimes._options import choose_cuda
from llmkit.runtimes.exported.engine import FixedEngine, engine_errors
from llmkit.runtimes.exported.weights import read_weights


def open_engine(model: ExportedModel, n_threads: int, device: str) -> JaxEngine:
    """Load the model. Raises FormatError, EngineError, DependencyError.

    JAX takes its number of threads from the environment when it begins, so only the first model's counts.
    """
    os.environ.setdefault("NPROC", str(n_threads))
    with engine_errors(model, "cannot load it", "jax", "jax"):
        import jax
        import jax.export

        device = choose_cuda(device, lambda: jax.default_backend() == "gpu", "jax")
        place = jax.local_devices(backend=device)[0]
        functions = {}
        for use in ("prefill", "decode"):
            exported = jax.export.deserialize(bytearray(model.file(use).read_bytes()))
            functions[use] = jax.jit(exported.call, donate_argnums=(3, 4))
        weights = {name: jax.device_put(values, place) for name, values in read_weights(model).items()}
        cache = [jax.device_put(np.zeros(model.cache_shape, np.float32), place) for _ in range(2)]
        return JaxEngine(f"StableHLO, JAX {jax.__version__}", functions, weights, cache, model, device)


class JaxEngine(FixedEngine):
    """Functions that are given weights and cache with every call; the cache is given away and comes back."""

    def __init__(
        self,
        name: str,
        functions: dict[str, Any],
        weights: dict[str, Any],
        cache: list[Any],
        model: ExportedModel,
        device: str,
    ) -> None:
        super().__init__(model)
        self.name = name
        self.device = device
        self._functions = functions
        self._weights = weights
        self._cache = cache

    def _call(self, use: str, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        with engine_errors(self._model, "failed", "jax", "jax"):
            inputs = (self._weights, ids[None].astype(np.int32), np.int32(position))
            logits, *self._cache = self._functions[use](*inputs, *self._cache)
            rows: NDArray[np.float32] = np.asarray(logits)[0]
        return rows

    def close(self) -> None:
        self._functions.clear()
        self._weights.clear()
        self._cache.clear()
