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
from llmkit.kernels.lanes import LANES, absolute, load, select, splat, store

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
def _round_block(
    values: Any, first: Any, length: Any, found: Any, carry: Any, width: Any, codes: Any, errors: Any
) -> None:
    """Round the columns of a block one after the other, in all rows of a tile at once.

    found: scales and zero points of the rows. With `carry` each error is handed on to later columns of the block, and
    left in `errors`.
    """
    scale, zero_point = load(found[0], 0), load(found[1], 0)
    inverse = select(scale == splat(_ZERO), splat(_ZERO), splat(np.float32(1)) / scale)
    shifted = zero_point + splat(_MAGIC)
    for i in range(length):
        at = first + i
        value = load(values, at * LANES)
        rounded = _rounded(value, inverse, shifted)
        store_u8(codes, i * LANES, bits_of(rounded) - splat_int(_MAGIC_BITS))
        if carry.size:
            error = value - (rounded - shifted) * scale
            error = select(absolute(error) < splat(np.float32(np.inf)), error, splat(_ZERO))
            store(errors, i * LANES, error)
            row = at * width - at // width * width
            for j in range(at + 1, min((at // width + 1) * width, first + length)):
                store(values, j * LANES, load(values, j * LANES) - error * splat(carry[row + j]))


@helper
def _hand_on(values: Any, columns: Any, first: Any, last: Any, carry: Any, width: Any, errors: Any) -> None:
    """Take the shares of the errors of columns `first` to `last` off those after the block, in the columns' order."""
    run = (last - 1) // width * width
    begin, stop = max(first, run), min(run + width, columns)
    whole = last + (stop - last) // 4 * 4
    for j in range(last, whole, 4):
        at = j * LANES
        a, b = load(values, at), load(values, at + LANES)
        c, d = load(values, at + 2 * LANES), load(values, at + 3 * LANES)
        for i in range(begin, last):
            error, share = load(errors, (i - first) * LANES), i * width + j - run
            a = a - error * splat(carry[share])
            b = b - error * splat(carry[share + 1])
            c = c - error * splat(carry[share + 2])
            d = d - error * splat(carry[share + 3])
        store(values, at, a)
        store(values, at + LANES, b)
        store(values, at + 2 * LANES, c)
        store(values, at + 3 * LANES, d)
    for j in range(whole, stop):
        a = load(values, j * LANES)
        for i in range(begin, last):
            a = a - load(errors, (i - first) * LANES) * splat(carry[i * width + j - run])
        store(values, j * LANES, a)


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
    n_rows = weights.size // columns
    block, counts = np.zeros(block_size, np.float32), np.zeros(block_size, np.float32)
    # A tile of sixteen rows, column after column, filled up with columns and rows of zeros.
    values = np.zeros(n_blocks * block_size * LANES, np.float32)
    means = np.zeros(LANES, np.float32)
    found = (np.zeros(LANES, np.float32), np.zeros(LANES, np.float32))
    errors, codes = np.empty(block_size * LANES, np.float32), np.empty(block_size * LANES, np.uint8)
    scratch = np.empty(LANES, np.float32)
    tables = (np.empty(2 * LANES, np.float32), np.empty(2 * LANES, np.float32))
    for i in range(2 * LANES):
        tables[0][i] = np.float32(1) / (SYMMETRIC_FACTORS[i % LANES] if symmetric else FACTORS[i])
        tables[1][i] = np.float32(SHIFTS[i])
    for start in range(0, n_rows, LANES):
        n = min(LANES, n_rows - start)
        for row in range(LANES):
            for i in range(columns):
                values[i * LANES + row] = weights[(start + row) * columns + i] if row < n else _ZERO
            if importance.size == 0:
                squares = 0.0
                for i in range(columns):
                    squares += np.float64(values[i * LANES + row]) ** 2
                means[row] = np.float32(squares / columns)
        for b in range(n_blocks):
            first = b * block_size
            length = min(block_size, columns - first)
            for row in range(n):
                minimum, maximum = _ZERO, _ZERO
                for i in range(length):
                    w = values[(first + i) * LANES + row]
                    block[i] = w
                    counts[i] = importance[first + i] if importance.size else np.sqrt(means[row] + w * w)
                    minimum = min(minimum, w)
                    maximum = max(maximum, w)
                scale, zero_point = _search(block, counts, length, minimum, maximum, symmetric, tables, scratch)
                if not abs(scale) < np.float32(np.inf):
                    scale = _ZERO
                if half_scales:
                    scale = first_float(f16_values(f16_bits(splat(scale))))
                found[0][row], found[1][row] = scale, zero_point
            _round_block(values, first, length, found, carry, width, codes, errors)
            if carry.size:
                _hand_on(values, columns, first, first + length, carry, width, errors)
            for i in range(length, block_size):
                store_u8(codes, i * LANES, bits_of(load(found[1], 0) + splat(_MAGIC)) - splat_int(_MAGIC_BITS))
            for row in range(n):
                at = ((start + row) * n_blocks + b) * block_size // 2
                for i in range(block_size // 2):
                    packed[at + i] = codes[2 * i * LANES + row] | codes[(2 * i + 1) * LANES + row] << 4
                scales[(start + row) * n_blocks + b] = found[0][row]
                if not symmetric:
                    byte = (start + row) * zero_bytes + b // 2
                    z = np.int64(found[1][row])
                    if b % 2 == 0:
                        zero_points[byte] = z | _MIDDLE << 4
                    else:
                        zero_points[byte] = zero_points[byte] & 15 | z << 4
