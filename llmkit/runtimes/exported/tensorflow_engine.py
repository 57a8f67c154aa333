"""TensorFlow's SavedModel. Its graph can read and write files: run those that you trust."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.runtimes.exported.engine import FixedEngine, engine_errors


def open_engine(model: ExportedModel, n_threads: int, device: str) -> TensorFlowEngine:
    """Load the model. What TensorFlow does first in a process determines its threads.

    Raises FormatError, EngineError, DependencyError.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with engine_errors(model, "cannot load it", "tensorflow", "savedmodel"):
        import tensorflow as tf

        with suppress(RuntimeError):  # it has begun already, with others
            tf.config.threading.set_intra_op_parallelism_threads(n_threads)
        loaded = tf.saved_model.load(str(model.file()))
        return TensorFlowEngine(tf, loaded, model)


class TensorFlowEngine(FixedEngine):
    """Signatures that are given the cache with every call."""

    def __init__(self, tf: Any, loaded: Any, model: ExportedModel) -> None:
        super().__init__(model)
        self._tf = tf
        self._loaded = loaded  # its variables live as long as it
        self._cache = {name: tf.zeros(model.cache_shape) for name in ("keys", "values")}
        self.name = f"TensorFlow {tf.__version__}"

    def _call(self, use: str, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        with engine_errors(self._model, "failed", "tensorflow", "savedmodel"):
            tf = self._tf
            found = self._loaded.signatures[use](
                ids=tf.constant(ids[None], tf.int32), position=tf.constant(position, tf.int32), **self._cache
            )
            self._cache = {name: found[name] for name in ("keys", "values")}
            rows: NDArray[np.float32] = found["logits"].numpy()[0]
        return rows

    def close(self) -> None:
        self._loaded = None
        self._cache.clear()
