"""How far decoded weights are from the originals."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.jit import FLOATS_IN, kernel, target
from llmkit.kernels.lanes import LANES, load, splat, store

# Weights whose squares are added up in float32, 64 to a lane, before they go on in float64.
_BLOCK = 64 * LANES
# Where float32 holds the squares of a block: beyond that they overflow or lose their bits.
_SMALLEST, _LARGEST = 1e-24, 1e34


@kernel(FLOATS_IN, FLOATS_IN, target(types.float64))
def _add_squares(weights: NDArray[np.float32], decoded: NDArray[np.float32], sums: NDArray[np.float64]) -> None:
    lanes = np.empty(2 * LANES, np.float32)
    for start in range(0, weights.size, _BLOCK):
        errors, squares = splat(np.float32(0)), splat(np.float32(0))
        for i in range(start, start + _BLOCK, LANES):
            weight = load(weights, i)
            difference = load(decoded, i) - weight
            errors = errors + difference * difference
            squares = squares + weight * weight
        store(lanes, 0, errors)
        store(lanes, LANES, squares)
        for k in range(LANES):
            sums[0] += np.float64(lanes[k])
            sums[1] += np.float64(lanes[LANES + k])


def squared_error(weights: NDArray[np.float32], decoded: NDArray[np.float32]) -> tuple[float, float]:
    """Sum of (decoded - weights)² and of weights², for flat contiguous float32 arrays of one size.

    Each to about six digits; finite just if all values are.
    """
    if weights.ndim != 1 or weights.shape != decoded.shape:
        raise ValueError(f"expected flat arrays of one size, got {weights.shape} and {decoded.shape}")
    whole = weights.size - weights.size % _BLOCK
    sums = np.zeros(2, np.float64)
    _add_squares(weights[:whole], decoded[:whole], sums)
    error, square = (float(total) for total in sums)
    exact = (error == 0 or error > _SMALLEST) and _SMALLEST < square < _LARGEST and error < _LARGEST
    rest = slice(whole if exact else 0, None)
    rest_error, rest_square = _exact(weights[rest], decoded[rest])
    return (error + rest_error, square + rest_square) if exact else (rest_error, rest_square)


def _exact(weights: NDArray[np.float32], decoded: NDArray[np.float32]) -> tuple[float, float]:
    """In float64, where no square of a float32 overflows."""
    error = square = 0.0
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        for start in range(0, weights.size, _BLOCK):
            wide = weights[start : start + _BLOCK].astype(np.float64)
            difference = decoded[start : start + _BLOCK] - wide
            error += float(np.sum(difference * difference))
            square += float(np.sum(wide * wide))
    return error, square
