"""Sums of squares, which set the weights of the searches with an importance matrix, added in C's order."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types

from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.lanes import LANES, load, splat, store, transpose

_TILE: Final = LANES * LANES


@helper
def sums_of_squares(x: Any, length: Any, sums: Any) -> None:
    """sums[k] = sum of the squares of x[k * length : (k + 1) * length] for every k < sums.size.

    Each sum is rounded after every addition, first weight first. Such a chain of additions leaves a processor idle, so
    sixteen of them run side by side, one per lane. length: a multiple of 16.
    """
    rows = np.zeros(_TILE, np.float32)
    columns = np.empty(_TILE, np.float32)
    totals = np.empty(LANES, np.float32)
    for first in range(0, sums.size, LANES):
        count = min(LANES, sums.size - first)
        total = splat(np.float32(0))
        for i in range(first * length, (first + 1) * length, LANES):
            for lane in range(count):
                store(rows, LANES * lane, load(x, i + lane * length))
            transpose(rows, 0, LANES, columns, 0)
            for column in range(0, _TILE, LANES):
                v = load(columns, column)
                total = total + v * v
        store(totals, 0, total)
        for lane in range(count):
            sums[first + lane] = totals[lane]


@kernel(FLOATS_IN, types.int64, types.float32, FLOATS_OUT)
def find_mean_squares(weights: Any, run: int, factor: float, mean_squares: Any) -> None:
    """mean_squares[k] = factor * (sum of squares) / run of the k-th `run` weights."""
    sums_of_squares(weights, run, mean_squares)
    for k in range(mean_squares.size):
        mean_squares[k] = np.float32(factor) * mean_squares[k] / np.float32(run)
