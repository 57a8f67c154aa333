"""Ranges, scales and rounding of a block of 32 weights, held as two groups of sixteen lanes.

The results are those of ggml's sequential loops (ggml-quants.c, `quantize_row_*_ref`), signs of zeros included.
Maxima are taken over the bits of the floats, where the order of combining cannot matter. Blocks with NaN, where C's
comparisons do depend on the order, take a path of their own.
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

_INFINITY = 0x7F800000  # bits of float32 infinity; the magnitudes above are NaN
_LARGEST = np.finfo(np.float32).max


@helper
def _mask_of_block(low: Any, high: Any) -> Any:
    """One int32 from the masks of both halves: bit i is weight i."""
    return np.int32(mask_bits(low) | mask_bits(high) << 16)


@helper
def largest_magnitude(low: Any, high: Any) -> Any:
    """The largest absolute value of the block, a float32.

    In C a NaN displaces the maximum so far and gives way to any later weight, so the last NaN hides all before it.
    """
    low_magnitude, high_magnitude = bits_of(low) & 0x7FFFFFFF, bits_of(high) & 0x7FFFFFFF
    magnitude = largest(larger(low_magnitude, high_magnitude))
    if magnitude > _INFINITY:
        hidden = _mask_of_block(low_magnitude > _INFINITY, high_magnitude > _INFINITY)
        if hidden < 0:
            return float_from_bits(magnitude)  # the last weight is NaN
        for shift in (1, 2, 4, 8, 16):
            hidden |= hidden >> shift
        low_magnitude = select_int(mask_from_bits(hidden), splat_int(0), low_magnitude)
        high_magnitude = select_int(mask_from_bits(hidden >> 16), splat_int(0), high_magnitude)
        magnitude = largest(larger(low_magnitude, high_magnitude))
    return float_from_bits(magnitude)


@helper
def signed_extreme(low: Any, high: Any) -> Any:
    """The weight of largest magnitude with its sign; the first one of several, +0 when all are zero or NaN."""
    low_bits, high_bits = bits_of(low), bits_of(high)
    low_magnitude, high_magnitude = low_bits & 0x7FFFFFFF, high_bits & 0x7FFFFFFF
    magnitude = largest(larger(low_magnitude, high_magnitude))
    if magnitude > _INFINITY:
        low_magnitude = select_int(low_magnitude > _INFINITY, splat_int(0), low_magnitude)
        high_magnitude = select_int(high_magnitude > _INFINITY, splat_int(0), high_magnitude)
        magnitude = largest(larger(low_magnitude, high_magnitude))
    where = _mask_of_block(low_magnitude == splat_int(magnitude), high_magnitude == splat_int(magnitude))
    negative = _mask_of_block(low_bits < 0, high_bits < 0)
    first = where & -where
    if magnitude != 0 and (negative & first) != 0:
        return -float_from_bits(magnitude)
    return float_from_bits(magnitude)


@helper
def ordered(word: Any) -> Any:
    """Float bits as integers in the order of the floats (-0 below +0), and back: its own inverse."""
    return word ^ ((word >> 31) & 0x7FFFFFFF)


@helper
def bounds(low: Any, high: Any) -> Any:
    """(minimum, maximum) of the block as float32; a minimum of zero has the sign of the block's first zero.

    Two zeros compare equal, so a sequential minimum keeps the first. The sign of a zero maximum never shows. C starts
    from the largest finite values, beyond which a minimum or maximum does not go, and passes over NaN.
    """
    low_bits, high_bits = bits_of(low), bits_of(high)
    low_order, high_order = ordered(low_bits), ordered(high_bits)
    lower = smallest(smaller(low_order, high_order))
    upper = largest(larger(low_order, high_order))
    if upper > _INFINITY or lower < ~_INFINITY:
        low_nan, high_nan = (low_bits & 0x7FFFFFFF) > _INFINITY, (high_bits & 0x7FFFFFFF) > _INFINITY
        last, first = splat_int(_INFINITY), splat_int(~_INFINITY)
        lower = smallest(smaller(select_int(low_nan, last, low_order), select_int(high_nan, last, high_order)))
        upper = largest(larger(select_int(low_nan, first, low_order), select_int(high_nan, first, high_order)))
    minimum = min(first_float(from_bits(ordered(splat_int(lower)))), _LARGEST)
    maximum = max(first_float(from_bits(ordered(splat_int(upper)))), -_LARGEST)
    if minimum == np.float32(0):
        zeros = _mask_of_block((low_bits & 0x7FFFFFFF) == 0, (high_bits & 0x7FFFFFFF) == 0)
        negative = _mask_of_block(low_bits < 0, high_bits < 0)
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
    put_u32(packed, index, _mask_of_block((low_codes & 16) == 16, (high_codes & 16) == 16))


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
