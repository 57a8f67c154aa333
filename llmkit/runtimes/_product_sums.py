"""Sums of products of activations: how the columns that a matrix multiplies go together."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import numpy as np
from numpy.typing import NDArray

MIN_WIDTH: Final = 2


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it, NumPy multiplies on one thread: others would wait for work on cores that llama.cpp computes on."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limits


class ProductSums:
    """What the products of each two columns of a run add up to: `sums`, float32 [runs, width, width].

    The last run is filled up with columns of zeros.
    """

    def __init__(self, n_columns: int, width: int) -> None:
        self._width = min(width, n_columns)
        self.sums = np.zeros((-(-n_columns // self._width), self._width, self._width), np.float32)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add those of `rows`, float32 [..., columns]. What overflows becomes infinite, without a warning."""
        flat = rows.reshape(-1, rows.shape[-1])
        with np.errstate(over="ignore", invalid="ignore"):
            for run, sums in enumerate(self.sums):
                part = flat[:, run * self._width : (run + 1) * self._width]
                n = part.shape[1]
                sums[:n, :n] += part.T @ part
