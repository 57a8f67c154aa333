"""Blocks of 4- or 8-bit codes with a float scale and an optional zero point, kept in separate arrays.

w = scale * (code - zero point). Each row is divided into blocks of 16 to 256 weights, the last of which may be shorter;
the zero point is 8 or 128 where none is stored. Two 4-bit codes, and two 4-bit zero points, share a byte, the first in
its low half. Nothing checks bounds: see llmkit.quantize.blockwise.

Source: onnxruntime/core/mlas/lib/q4_dq.cpp of ONNX Runtime (MlasQuantizeBlockwise, MlasDequantizeBlockwise).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.blocks import ordered, reciprocal
from llmkit.kernels.halffloat import f16_bits, f16_values
from llmkit.kernels.intlanes import (
    bits_of,
    first_float,
    from_bits,
    largest,
    load_u8,
    load_u16,
    smallest,
    splat_int,
    store_u8,
    store_u16,
    to_float,
    to_int,
)
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.lanes import LANES, load, select, splat, store

_ZERO: Final = np.float32(0)
_LARGEST: Final = np.finfo(np.float32).max
# The largest float below one half: one half itself would round 0.49999997 up.
_NEARLY_HALF: Final = np.float32(0.49999997)


@helper
def _load_block(weights: Any, start: Any, length: Any, block: Any) -> Any:
    """Copy a block to `block`, whose end repeats a short one's first weight, and return its (minimum, maximum).

    As in C, the search for both starts from the largest finite values and passes over NaN.
    """
    for i in range(0, length - length % LANES, LANES):
        store(block, i, load(weights, start + i))
    for i in range(length - length % LANES, length):
        block[i] = weights[start + i]
    for i in range(length, block.size):
        block[i] = weights[start]
    lower, upper = splat(_LARGEST), splat(-_LARGEST)
    for i in range(0, block.size, LANES):
        v = load(block, i)
        lower = select(v < lower, v, lower)
        upper = select(v > upper, v, upper)
    minimum = first_float(from_bits(ordered(splat_int(smallest(ordered(bits_of(lower)))))))
    maximum = first_float(from_bits(ordered(splat_int(largest(ordered(bits_of(upper)))))))
    return minimum, maximum


@helper
def _symmetric_scale(block: Any, minimum: Any, maximum: Any, middle: Any) -> Any:
    """The scale that maps the weight of largest magnitude to code 0."""
    extreme = maximum if abs(maximum) > abs(minimum) else minimum
    if extreme == _ZERO:
        # The scale of zeros has the sign opposite to that of the first.
        for i in range(block.size):
            if block[i] == _ZERO:
                extreme = block[i]
                break
    return -extreme / np.float32(middle)


@helper
def _scale_and_zero_point(minimum: Any, maximum: Any, highest: Any) -> Any:
    """The scale that maps the range, extended to zero, to codes 0..highest, and the code of zero."""
    minimum, maximum = min(minimum, _ZERO), max(maximum, _ZERO)
    scale = (maximum - minimum) / np.float32(highest)
    zero_point = _ZERO - minimum / scale if scale != _ZERO else minimum
    if not zero_point > _ZERO:
        return scale, np.int64(0)
    return scale, np.int64(min(zero_point, np.float32(highest)) + _NEARLY_HALF)


@helper
def _round_codes(block: Any, inverse: Any, zero_point: Any, highest: Any, codes: Any, at: Any) -> None:
    """Write the codes of a block's weights, a byte each, to codes[at:]; NaN has code 0."""
    factor, offset = splat(inverse), splat(np.float32(zero_point))
    zero, top, half = splat(_ZERO), splat(np.float32(highest)), splat(_NEARLY_HALF)
    for i in range(0, block.size, LANES):
        v = load(block, i) * factor + offset
        v = select(v > zero, v, zero)
        v = select(v < top, v, top)
        store_u8(codes, at + i, to_int(v + half))


@helper
def _pack_row(codes: Any, pairs: Any, size: Any, bits: Any, packed: Any, at: Any) -> None:
    """Write `size` codes, a byte each, to packed[at:]; `pairs` holds the same bytes as 16-bit words."""
    if bits == 8:
        for i in range(0, size, LANES):
            store_u8(packed, at + i, load_u8(codes, i))
        return
    n_pairs = size // 2
    for i in range(0, n_pairs - n_pairs % LANES, LANES):
        pair = load_u16(pairs, i)
        store_u8(packed, at + i, pair | pair >> 4)
    for i in range(n_pairs - n_pairs % LANES, n_pairs):
        packed[at + i] = codes[2 * i] | codes[2 * i + 1] << 4


@helper
def _unpack_row(packed: Any, at: Any, size: Any, bits: Any, codes: Any, pairs: Any) -> None:
    """The reverse of `_pack_row`."""
    if bits == 8:
        for i in range(0, size, LANES):
            store_u8(codes, i, load_u8(packed, at + i))
        return
    n_pairs = size // 2
    for i in range(0, n_pairs - n_pairs % LANES, LANES):
        byte = load_u8(packed, at + i)
        store_u16(pairs, i, (byte & 15) | (byte & 0xF0) << 4)
    for i in range(n_pairs - n_pairs % LANES, n_pairs):
        codes[2 * i], codes[2 * i + 1] = packed[at + i] & 15, packed[at + i] >> 4


@kernel(FLOATS_IN, types.int64, types.int64, types.int64, types.boolean, BYTES_OUT, FLOATS_OUT, BYTES_OUT)
def encode_blocks(
    weights: NDArray[np.float32],
    columns: int,
    block_size: int,
    bits: int,
    half_scales: bool,
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8],
) -> None:
    """Encode rows of `columns` weights.

    packed: rows of whole blocks of codes; the codes that fill up the last block are 0, but see below.
    scales: one per block; rounded to float16 if half_scales.
    zero_points: rows of whole bytes, a half byte too many holding 8; or empty: codes are symmetric around 8 or 128.
    """
    highest, middle = (1 << bits) - 1, 1 << (bits - 1)
    n_blocks = (columns + block_size - 1) // block_size
    row_size = n_blocks * block_size
    zero_bytes = (n_blocks * bits + 7) // 8
    block = np.empty(block_size, np.float32)
    codes = np.zeros(row_size, np.uint8)
    pairs = codes.view(np.uint16)
    for row in range(weights.size // columns):
        for b in range(n_blocks):
            length = min(block_size, columns - b * block_size)
            minimum, maximum = _load_block(weights, row * columns + b * block_size, length, block)
            if zero_points.size:
                scale, zero_point = _scale_and_zero_point(minimum, maximum, highest)
                at = row * zero_bytes + b * bits // 8
                if bits == 8:
                    zero_points[at] = zero_point
                elif b % 2 == 0:
                    zero_points[at] = zero_point | middle << 4
                else:
                    zero_points[at] = zero_points[at] & 15 | zero_point << 4
            else:
                scale, zero_point = _symmetric_scale(block, minimum, maximum, middle), np.int64(middle)
            if half_scales:
                scale = first_float(f16_values(f16_bits(splat(scale))))
            scales[row * n_blocks + b] = scale
            _round_codes(block, reciprocal(scale), zero_point, highest, codes, b * block_size)
        codes[columns:] = 0
        if bits == 4 and columns % 2 and (columns - 1) % (2 * block_size):
            # ONNX Runtime leaves a former code in the half byte after an odd number of weights.
            codes[columns] = codes[columns - 2]
        _pack_row(codes, pairs, row_size, bits, packed, row * row_size * bits // 8)


@kernel(BYTES_IN, FLOATS_IN, BYTES_IN, types.int64, types.int64, types.int64, FLOATS_OUT)
def decode_blocks(
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8],
    columns: int,
    block_size: int,
    bits: int,
    weights: NDArray[np.float32],
) -> None:
    """Decode to rows of `columns` weights; the arrays are those of `encode_blocks`."""
    n_blocks = (columns + block_size - 1) // block_size
    row_size = n_blocks * block_size
    zero_bytes = (n_blocks * bits + 7) // 8
    codes = np.empty(row_size, np.uint8)
    pairs = codes.view(np.uint16)
    for row in range(weights.size // columns):
        _unpack_row(packed, row * row_size * bits // 8, row_size, bits, codes, pairs)
        for b in range(n_blocks):
            zero_point = np.int64(1 << (bits - 1))
            if zero_points.size:
                zero_point = np.int64(zero_points[row * zero_bytes + b * bits // 8])
                if bits == 4:
                    zero_point = zero_point >> b % 2 * 4 & 15
            scale = scales[row * n_blocks + b]
            first = b * block_size
            length = min(block_size, columns - first)
            start = row * columns + first
            whole = length - length % LANES
            for i in range(0, whole, LANES):
                store(weights, start + i, to_float(load_u8(codes, first + i) - zero_point) * splat(scale))
            for i in range(whole, length):
                weights[start + i] = np.float32(np.int64(codes[first + i]) - zero_point) * scale
