"""How far one model's predictions are from another's, in plain NumPy, beside llmkit's own kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def divergences(expected: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """KL divergence in nats of the distributions that logits [n, n_vocab] stand for from those of `expected`: [n]."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (expected, found))
    result: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return result


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
