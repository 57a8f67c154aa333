"""Ranges, scales and rounding of a block of 32 weights, held as two groups of sixteen lanes.

The results are those of ggml's sequential loops (ggml-quants.c, `quantize_row_*_ref`) for finite weights, signs of
zeros included. Maxima are taken over the bits of the floats, where the order of combining cannot matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llmkit.kernels.halffloat import f16_bits, f16_values
from llmkit.kernels.intlanes import (
    bits_of,
    first_float,
    first_lane,
    float_from_bits,
    from_bits,
    get_u16,
    larger,
    largest,
    mask_bits,
    mask_from_bits,
    put_u16,
    put_u32,
    select_int,
    smaller,
    smallest,
    splat_int,
    to_int,
)
from llmkit.kernels.jit import helper
from llmkit.kernels.lanes import splat

BLOCK = 32
HALF_BLOCK = 16


@helper
def largest_magnitude(low: Any, high: Any) -> Any:
    """The largest absolute value of the block, a float32."""
    return float_from_bits(largest(larger(bits_of(low) & 0x7FFFFFFF, bits_of(high) & 0x7FFFFFFF)))


@helper
def signed_extreme(low: Any, high: Any) -> Any:
    """The weight of largest magnitude with its sign; the first one of several, +0 when all are zero."""
    low_bits, high_bits = bits_of(low), bits_of(high)
    low_magnitude, high_magnitude = low_bits & 0x7FFFFFFF, high_bits & 0x7FFFFFFF
    magnitude = largest(larger(low_magnitude, high_magnitude))
    where = mask_bits(low_magnitude == splat_int(magnitude)) | mask_bits(high_magnitude == splat_int(magnitude)) << 16
    negative = mask_bits(low_bits < 0) | mask_bits(high_bits < 0) << 16
    first = where & -where
    if magnitude != 0 and (negative & first) != 0:
        return -float_from_bits(magnitude)
    return float_from_bits(magnitude)


@helper
def _ordered(word: Any) -> Any:
    """Float bits as integers in the order of the floats (-0 below +0), and back: its own inverse."""
    return word ^ ((word >> 31) & 0x7FFFFFFF)


@helper
def bounds(low: Any, high: Any) -> Any:
    """(minimum, maximum) of the block as float32; a minimum of zero has the sign of the block's first zero.

    Two zeros compare equal, so a sequential minimum keeps the first. The sign of a zero maximum never shows.
    """
    low_bits, high_bits = bits_of(low), bits_of(high)
    low_order, high_order = _ordered(low_bits), _ordered(high_bits)
    lower = smallest(smaller(low_order, high_order))
    upper = largest(larger(low_order, high_order))
    minimum = first_float(from_bits(_ordered(splat_int(lower))))
    maximum = first_float(from_bits(_ordered(splat_int(upper))))
    if minimum == np.float32(0):
        zeros = mask_bits(low_bits & 0x7FFFFFFF == 0) | mask_bits(high_bits & 0x7FFFFFFF == 0) << 16
        negative = mask_bits(low_bits < 0) | mask_bits(high_bits < 0) << 16
        minimum = np.float32(-0.0) if (negative & zeros & -zeros) != 0 else np.float32(0.0)
    return minimum, maximum


@helper
def reciprocal(scale: Any) -> Any:
    """1 / scale, or 0 for a scale of 0; infinite for scales below 2**-128."""
    return np.float32(1) / scale if scale != np.float32(0) else np.float32(0)


@helper
def put_f16(packed: Any, index: Any, value: Any) -> None:
    """Store a float32 as float16 at byte `index`."""
    put_u16(packed, index, first_lane(f16_bits(splat(value))))


@helper
def get_f16(packed: Any, index: Any) -> Any:
    """Float32 lanes, all equal to the float16 at byte `index`."""
    return f16_values(splat_int(get_u16(packed, index)))


@helper
def put_fifth_bits(packed: Any, index: Any, low_codes: Any, high_codes: Any) -> None:
    """Store bit 4 of 32 codes as one word at byte `index`, the code of weight i at bit i."""
    put_u32(packed, index, mask_bits((low_codes & 16) == 16) | mask_bits((high_codes & 16) == 16) << 16)


@helper
def with_fifth_bits(codes: Any, word: Any) -> Any:
    """Codes of 4 bits, plus 16 in lane i where bit i of the word is set."""
    return codes | select_int(mask_from_bits(word), splat_int(16), splat_int(0))


@helper
def rounded(lanes: Any) -> Any:
    """Nearest integers, halves away from zero, as C's roundf.

    The largest float below one half takes part in place of one half, which would round 0.49999997 up.
    """
    nearly_half = from_bits((bits_of(lanes) & -0x80000000) | 0x3EFFFFFF)
    return to_int(lanes + nearly_half)
