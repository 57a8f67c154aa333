"""4-bit blocks of ONNX Runtime whose scales and zero points are searched for.

For a choice of codes the scale that gives the smallest weighted squared error follows by least squares, and the error
with it: the sum of m w^2 less (sum of m w q)^2 / (sum of m q^2), for q = code - zero point. So a candidate, a scale to
round by and a zero point, takes one pass over the block, and sixteen are tried side by side. Nothing checks bounds: see
llmkit.quantize.blockwise.

What rounding a weight leaves can be handed on to the weights after it in the row, where activations go together: see
llmkit.quantize.feedback.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.halffloat import f16_bits, f16_values
from llmkit.kernels.intlanes import (
    bits_of,
    first_float,
    from_bits,
    lane_numbers,
    larger,
    largest,
    select_int,
    smaller,
    splat_int,
    store_u8,
)
from llmkit.kernels.jit import BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.lanes import LANES, load, splat, store

# Candidates, sixteen side by side. Scales to round by are multiples of the one that just covers the block: below 1 the
# largest weights are cut off. Without zero points codes reach one step further down than up, so that a block may be
# better off turned over: then the multiple is negative.
SYMMETRIC_FACTORS: Final = tuple(
    np.float32(x)
    for x in (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, -0.8, -0.85, -0.9, -0.95, -1.0, -1.05, -1.1)
)
# With zero points: the one that the scale makes nearest to the minimum, and those beside it.
FACTORS: Final = (
    *(np.float32(0.7 + 0.025 * i) for i in range(16)),
    *(np.float32(0.7 + 0.05 * i) for i in range(8)),
    *(np.float32(0.7 + 0.05 * i) for i in range(8)),
)
SHIFTS: Final = (*(0,) * 16, *(-1,) * 8, *(1,) * 8)
_TOP: Final = 15
_MAGIC: Final = np.float32(1.5 * 2**23)
_MAGIC_BITS: Final = 0x4B400000
_MIDDLE: Final = 8
_ZERO: Final = np.float32(0)
_HALF: Final = np.float32(0.5)


@helper
def _rounded(v: Any, inverse: Any, shifted: Any) -> Any:
    """2^23 + 2^22 plus the codes of weights, where `shifted` is that plus the zero point.

    Numbers of that size are whole: the addition rounds to the nearest, to even where two are as near. They are ordered
    as their bits are, so that integers limit them to what codes there are.
    """
    bits = bits_of(v * inverse + shifted)
    return from_bits(smaller(larger(bits, splat_int(_MAGIC_BITS)), splat_int(_MAGIC_BITS + _TOP)))


@helper
def _best_lane(gains: Any) -> Any:
    """The first lane of those with nearly the largest gain, or -1 where none is above zero.

    Bits of positive floats are ordered as they are. The last four of them give way to the lane's number.
    """
    words = select_int(gains > splat(_ZERO), bits_of(gains), splat_int(0))
    best = largest((words & splat_int(~15)) | (splat_int(LANES - 1) - lane_numbers()))
    return LANES - 1 - (best & 15) if best > 15 else -1


@helper
def _search(
    block: Any, importance: Any, length: Any, minimum: Any, maximum: Any, symmetric: Any, tables: Any, scratch: Any
) -> Any:
    """The best (scale, zero point) found; scale 0 where nothing but zeros, or what is no number, is in the block.

    tables: one over the factors, and the shifts of the zero point.
    """
    factors, shifts = tables
    gains_so_far, best_scale, best_zero = _ZERO, _ZERO, np.float32(_MIDDLE)
    if symmetric:
        # The weight of largest magnitude has code 0 where the factor is 1.
        span = (-maximum if maximum > -minimum else -minimum) / np.float32(_MIDDLE)
    else:
        span = (maximum - minimum) / np.float32(_TOP)
    for first in range(0, LANES if symmetric else 2 * LANES, LANES):
        inverse = splat(np.float32(1) / span) * load(factors, first)
        shifted = splat(_MAGIC + np.float32(_MIDDLE))
        if not symmetric:
            nearest = _rounded(splat(-minimum), inverse, splat(_MAGIC)) + load(shifts, first)
            limited = smaller(larger(bits_of(nearest), splat_int(_MAGIC_BITS)), splat_int(_MAGIC_BITS + _TOP))
            shifted = from_bits(limited)
        products, squares = splat(_ZERO), splat(_ZERO)
        for i in range(length):
            w = splat(block[i])
            q = _rounded(w, inverse, shifted) - shifted
            counted = splat(importance[i]) * q
            products = products + counted * w
            squares = squares + counted * q
        scales = products / squares
        gains = scales * products
        lane = _best_lane(gains)
        if lane >= 0:
            store(scratch, 0, gains)
            gain = scratch[lane]
            if gain > gains_so_far:
                gains_so_far = gain
                store(scratch, 0, scales)
                best_scale = scratch[lane]
                store(scratch, 0, shifted)
                best_zero = scratch[lane] - _MAGIC
    return best_scale, best_zero


@helper
def _round_in_turn(
    values: Any, first: Any, length: Any, scale: Any, inverse: Any, zero_point: Any, carry: Any, width: Any, codes: Any
) -> None:
    """Round weight after weight of a block, each handing its error on as `carry` says; see `search_blocks`."""
    shifted = zero_point + _MAGIC
    columns = values.size
    for i in range(length):
        at = first + i
        rounded = values[at] * inverse + shifted
        if not rounded > _MAGIC:
            rounded = _MAGIC
        elif rounded > _MAGIC + np.float32(_TOP):
            rounded = _MAGIC + np.float32(_TOP)
        codes[i] = np.uint8(rounded - _MAGIC)
        error = values[at] - (rounded - shifted) * scale
        if not abs(error) < np.float32(np.inf):
            continue
        following = (at // width + 1) * width
        shares = carry[at * width + at % width + 1 : at * width + width]
        rest = values[at + 1 : min(following, columns)]
        for j in range(rest.size):
            rest[j] -= error * shares[j]


@kernel(
    FLOATS_IN,
    FLOATS_IN,
    types.int64,
    types.int64,
    types.boolean,
    types.boolean,
    FLOATS_IN,
    types.int64,
    BYTES_OUT,
    FLOATS_OUT,
    BYTES_OUT,
)
def search_blocks(
    weights: NDArray[np.float32],
    importance: NDArray[np.float32],
    columns: int,
    block_size: int,
    symmetric: bool,
    half_scales: bool,
    carry: NDArray[np.float32],
    width: int,
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8],
) -> None:
    """Encode rows of `columns` weights; `importance`, one for each column, weighs their squared errors.

    Without any, sqrt(s + w^2) does, for the mean s of the row's w^2: large weights matter more than others.

    carry: [columns filled up, width] of matrices of width x width: what share of the error of its row's column is taken
        off each later one of the same `width` columns, before that is rounded and its block's scale searched for; empty
        for rounding each weight for itself.
    packed, scales, zero_points: as in llmkit.kernels.blockwise.encode_blocks; the codes that fill up the last block
        stand for zero.
    """
    n_blocks = (columns + block_size - 1) // block_size
    zero_bytes = (n_blocks + 1) // 2
    block, counts = np.zeros(block_size, np.float32), np.zeros(block_size, np.float32)
    values = np.empty(columns, np.float32)
    scratch = np.empty(LANES, np.float32)
    tables = (np.empty(2 * LANES, np.float32), np.empty(2 * LANES, np.float32))
    for i in range(2 * LANES):
        tables[0][i] = np.float32(1) / (SYMMETRIC_FACTORS[i % LANES] if symmetric else FACTORS[i])
        tables[1][i] = np.float32(SHIFTS[i])
    codes = np.empty(block_size, np.uint8)
    for row in range(weights.size // columns):
        mean = np.float32(0)
        for i in range(columns):
            values[i] = weights[row * columns + i]
        if importance.size == 0:
            squares = 0.0
            for i in range(columns):
                squares += np.float64(values[i]) ** 2
            mean = np.float32(squares / columns)
        for b in range(n_blocks):
            first = b * block_size
            length = min(block_size, columns - first)
            minimum, maximum = _ZERO, _ZERO
            for i in range(length):
                w = values[first + i]
                block[i] = w
                counts[i] = importance[first + i] if importance.size else np.sqrt(mean + w * w)
                minimum = min(minimum, w)
                maximum = max(maximum, w)
            for i in range(length, block_size):
                block[i] = _ZERO
            scale, zero_point = _search(block, counts, length, minimum, maximum, symmetric, tables, scratch)
            if not abs(scale) < np.float32(np.inf):
                scale = _ZERO
            if half_scales:
                scale = first_float(f16_values(f16_bits(splat(scale))))
            inverse = np.float32(1) / scale if scale != _ZERO else _ZERO
            factor, shifted = splat(inverse), splat(zero_point + _MAGIC)
            for i in range(0, block_size, LANES):
                store_u8(codes, i, bits_of(_rounded(load(block, i), factor, shifted)) - splat_int(_MAGIC_BITS))
            if carry.size:
                _round_in_turn(values, first, length, scale, inverse, zero_point, carry, width, codes)
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
