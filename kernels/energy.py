"""Mean squares of weights, which the searches with an importance matrix take part of a weight's count from."""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, kernel
from llmkit.kernels.lanes import LANES, load, splat, store, transpose

_TILE: Final = LANES * LANES


@kernel(FLOATS_IN, types.float32, FLOATS_OUT)
def find_mean_squares(weights: NDArray[np.float32], factor: np.float32, found: NDArray[np.float32]) -> None:
    """found[k] = factor * sum / run, where `sum` adds the squares of the k-th of found.size equal runs of weights.

    The run is a multiple of 16. Each sum is rounded after every addition, first weight first, as in C. Such a chain of
    additions leaves a processor idle, so sixteen of them go side by side, one per lane.
    """
    if found.size == 0:
        return
    run = weights.size // found.size
    tile = np.empty(_TILE, np.float32)
    padded = np.zeros(_TILE, np.float32)
    means = np.empty(LANES, np.float32)
    for first in range(0, found.size, LANES):
        count = min(LANES, found.size - first)
        total = splat(np.float32(0))
        for i in range(first * run, (first + 1) * run, LANES):
            if count == LANES:
                transpose(weights, i, run, tile, 0)
            else:
                for lane in range(count):
                    store(padded, LANES * lane, load(weights, i + lane * run))
                transpose(padded, 0, LANES, tile, 0)
            for row in range(0, _TILE, LANES):
                v = load(tile, row)
                total = total + v * v
        store(means, 0, splat(factor) * total / splat(np.float32(run)))
        for lane in range(count):
            found[first + lane] = means[lane]
