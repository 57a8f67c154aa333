"""4-bit blocks of ONNX Runtime whose scales and zero points are searched for.

For a choice of codes the scale that gives the smallest weighted squared error follows by least squares, and the error
with it: the sum of m w^2 less (sum of m w q)^2 / (sum of m q^2), for q = code - zero point. So every candidate, a scale
to round by and a zero point, costs one pass over the block. Nothing checks bounds: see llmkit.quantize.blockwise.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.halffloat import f16_bits, f16_values
from llmkit.kernels.intlanes import first_float, store_u8, to_float, to_int
from llmkit.kernels.jit import BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.lanes import LANES, load, select, splat, total

# Scales to round by, as multiples of the one that just covers the block: below 1 the largest weights are cut off.
N_FACTORS: Final = 9
LOWEST_FACTOR: Final = np.float32(0.7)
FACTOR_STEP: Final = np.float32(0.05)
_TOP: Final = 15
_MIDDLE: Final = 8
_ZERO: Final = np.float32(0)
_HALF: Final = np.float32(0.5)


@helper
def _rounded(v: Any, inverse: Any, zero_point: Any) -> Any:
    """The codes of weights, as integers; NaN has code 0."""
    scaled = v * inverse + zero_point
    zero, top = splat(_ZERO), splat(np.float32(_TOP))
    scaled = select(scaled > zero, scaled, zero)
    scaled = select(scaled < top, scaled, top)
    return to_int(scaled + splat(_HALF))


@helper
def _fit(block: Any, weighted: Any, importance: Any, inverse: Any, zero_point: Any) -> Any:
    """(sum of m w q, sum of m q^2) for the codes that this scale and zero point round to."""
    factor, offset = splat(inverse), splat(zero_point)
    products, squares = splat(_ZERO), splat(_ZERO)
    for i in range(0, block.size, LANES):
        q = to_float(_rounded(load(block, i), factor, offset)) - offset
        products = products + load(weighted, i) * q
        squares = squares + load(importance, i) * (q * q)
    return total(products), total(squares)


@helper
def _search(block: Any, weighted: Any, importance: Any, minimum: Any, maximum: Any, symmetric: Any) -> Any:
    """The best (scale, zero point) found; scale 0 where nothing but zeros, or what is no number, is in the block."""
    best, best_scale, best_zero = _ZERO, _ZERO, np.float32(_MIDDLE)
    if symmetric:
        # Codes reach one step further down than up, so the largest weight may be at either end.
        extreme = max(-minimum, maximum)
        span, first, last = extreme / np.float32(_MIDDLE), 0, 1
    else:
        span, first, last = (maximum - minimum) / np.float32(_TOP), -1, 1
    for step in range(N_FACTORS):
        scale = span * (LOWEST_FACTOR + np.float32(step) * FACTOR_STEP)
        for choice in range(first, last + 1):
            if symmetric:
                inverse = np.float32(1) / (scale if choice == 0 else -scale)
                zero_point = np.float32(_MIDDLE)
            else:
                inverse = np.float32(1) / scale
                nearest = min(max(-minimum * inverse + _HALF, _ZERO), np.float32(_TOP))
                zero_point = np.float32(np.int64(nearest) + choice)
                if zero_point < _ZERO or zero_point > np.float32(_TOP):
                    continue
            product, square = _fit(block, weighted, importance, inverse, zero_point)
            if square > _ZERO:
                gain = product / square * product
                if gain > best:
                    best, best_scale, best_zero = gain, product / square, zero_point
    return best_scale, best_zero


@kernel(FLOATS_IN, FLOATS_IN, types.int64, types.int64, types.boolean, types.boolean, BYTES_OUT, FLOATS_OUT, BYTES_OUT)
def search_blocks(
    weights: NDArray[np.float32],
    importance: NDArray[np.float32],
    columns: int,
    block_size: int,
    symmetric: bool,
    half_scales: bool,
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8],
) -> None:
    """Encode rows of `columns` weights; `importance`, one for each column, weighs their squared errors.

    Without any, sqrt(s + w^2) does, for the mean s of the row's w^2: large weights matter more than others.

    packed, scales, zero_points: as in llmkit.kernels.blockwise.encode_blocks; the codes that fill up the last block
    stand for zero.
    """
    n_blocks = (columns + block_size - 1) // block_size
    zero_bytes = (n_blocks + 1) // 2
    block, weighted, counts = (
        np.zeros(block_size, np.float32),
        np.zeros(block_size, np.float32),
        np.zeros(block_size, np.float32),
    )
    codes = np.empty(block_size, np.uint8)
    for row in range(weights.size // columns):
        mean = np.float32(0)
        if importance.size == 0:
            squares = 0.0
            for i in range(columns):
                squares += np.float64(weights[row * columns + i]) ** 2
            mean = np.float32(squares / columns)
        for b in range(n_blocks):
            first = b * block_size
            length = min(block_size, columns - first)
            minimum, maximum = _ZERO, _ZERO
            for i in range(length):
                w = weights[row * columns + first + i]
                block[i] = w
                counts[i] = importance[first + i] if importance.size else np.sqrt(mean + w * w)
                weighted[i] = counts[i] * w
                minimum = min(minimum, w)
                maximum = max(maximum, w)
            for i in range(length, block_size):
                block[i] = weighted[i] = counts[i] = _ZERO
            scale, zero_point = _search(block, weighted, counts, minimum, maximum, symmetric)
            if half_scales:
                scale = first_float(f16_values(f16_bits(splat(scale))))
            inverse = np.float32(1) / scale if scale != _ZERO else _ZERO
            factor, offset = splat(inverse), splat(zero_point)
            for i in range(0, block_size, LANES):
                store_u8(codes, i, _rounded(load(block, i), factor, offset))
            at = (row * n_blocks + b) * block_size // 2
            for i in range(block_size // 2):
                packed[at + i] = codes[2 * i] | codes[2 * i + 1] << 4
            scales[row * n_blocks + b] = scale
            if not symmetric:
                place = row * zero_bytes + b // 2
                z = np.int64(zero_point)
                if b % 2 == 0:
                    zero_points[place] = z | _MIDDLE << 4
                else:
                    zero_points[place] = zero_points[place] & 15 | z << 4
