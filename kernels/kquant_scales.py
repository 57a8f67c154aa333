"""Scales and minimums of a superblock's sub-blocks as small numbers, and superblocks with eight of 6 bits.

Scales and minimums alike are stored as numbers 0..highest times one float16, `find_scale_numbers`. Q4_K and Q5_K start
a superblock with 16 bytes: d and dmin, the float16 of the scales and of the minimums, then eight scales and eight
minimums of 6 bits in 12 bytes. Bytes 0-3 hold scales 0-3 and bytes 4-7 minimums 0-3 in their low six bits; bytes 8-11
the low four bits of scale and minimum 4-7; the high two bits of those stand on top of bytes 0-7.

Source: ggml/src/ggml-quants.c of llama.cpp (make_qp_quants, quantize_row_q4_K_ref and _impl, get_scale_min_k4).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import types

from llmkit.kernels.blocks import get_f16, put_f16
from llmkit.kernels.intlanes import bits_of, first_float, store_u8, to_float
from llmkit.kernels.jit import BYTES_OUT, FLOATS_IN, FLOATS_OUT, INT, helper, kernel
from llmkit.kernels.kquant_affine import MASS, MINUS_MINIMUM, PARTS, SCALE, found_codes
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, ROUNDING_MAGIC, nearest_codes
from llmkit.kernels.lanes import LANES, any_lane, load, select, splat, store

SUB_BLOCK: Final = 32
SUB_BLOCKS: Final = 8

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_STEP: Final = np.float32(0.1)
_N_STEPS: Final = 4  # on either side
_N_ROUNDS: Final = 5


class ScaleNumbers(NamedTuple):
    """How scales become numbers.

    sub_blocks: how many a superblock has. highest: the largest number. largest_byte: bytes above it, which negative
    numbers leave, are stored as this. fitted: whether the factor is fitted to all scales by least squares, each
    counting what the weights of its sub-block count (make_qp_quants), or is that of the largest scale.
    """

    sub_blocks: int
    highest: int
    largest_byte: int
    fitted: bool


SCALE_NUMBERS: Final = types.NamedTuple((INT, INT, INT, types.boolean), ScaleNumbers)


@helper
def _nearest(lanes: Any) -> Any:
    """`nearest_int` of each lane, as float32."""
    return to_float((bits_of(lanes + splat(ROUNDING_MAGIC)) & 0x007FFFFF) - 0x00400000)


@helper
def _as_byte(lanes: Any) -> Any:
    """Whole numbers as they come back from a byte: negative ones wrap."""
    return to_float(bits_of(lanes + splat(ROUNDING_MAGIC)) & 255)


@helper
def _by_largest(values: Any, numbers: Any, form: Any) -> Any:
    """Numbers of sixteen superblocks, one per lane, from the factor of the largest; returns the factors.

    values and numbers: float32, value j of superblock `lane` at 16 * j + lane.
    """
    zero = splat(_ZERO)
    top = splat(np.float32(form.highest))
    largest = zero
    for i in range(0, form.sub_blocks * LANES, LANES):
        v = load(values, i)
        largest = select(v > largest, v, largest)
    inverse = select(largest > zero, top / largest, zero)
    for i in range(0, form.sub_blocks * LANES, LANES):
        store(numbers, i, _as_byte(_nearest(inverse * load(values, i))))
    return largest / top


@helper
def _by_fit(values: Any, masses: Any, numbers: Any, form: Any) -> Any:
    """As `_by_largest`, but the factor is fitted; masses: what each value counts, laid out like `values`."""
    end = form.sub_blocks * LANES
    zero = splat(_ZERO)
    top = splat(np.float32(form.highest))
    largest = zero
    for i in range(0, end, LANES):
        v = load(values, i)
        largest = select(largest > v, largest, v)

    best_inverse = top / largest
    factor = splat(_ONE) / best_inverse
    best_error = zero
    for i in range(0, end, LANES):
        v = load(values, i)
        difference = v - factor * _as_byte(_nearest(best_inverse * v))
        best_error = best_error + load(masses, i) * difference * difference
    for step in range(-_N_STEPS, _N_STEPS + 1):
        if step == 0:
            continue
        inverse = splat(_STEP * np.float32(step) + np.float32(form.highest)) / largest
        factor = splat(_ONE) / inverse
        error = zero
        for i in range(0, end, LANES):
            v = load(values, i)
            nearest = _nearest(inverse * v)
            difference = v - factor * select(nearest < top, nearest, top)
            error = error + load(masses, i) * difference * difference
        better = error < best_error
        best_error = select(better, error, best_error)
        best_inverse = select(better, inverse, best_inverse)

    sum_lx = zero
    sum_l2 = zero
    for i in range(0, end, LANES):
        v = load(values, i)
        mass = load(masses, i)
        nearest = _nearest(best_inverse * v)
        number = select(nearest < top, nearest, top)
        store(numbers, i, _as_byte(number))
        sum_lx = sum_lx + mass * v * number
        sum_l2 = sum_l2 + mass * number * number

    for _ in range(_N_ROUNDS):
        changed = zero < zero
        for i in range(0, end, LANES):
            v = load(values, i)
            mass = load(masses, i)
            number = load(numbers, i)
            other_lx = sum_lx - mass * v * number
            other_l2 = sum_l2 - mass * number * number
            nearest = _nearest(v * other_l2 / other_lx)
            candidate = select(nearest < top, nearest, top)
            new_lx = other_lx + mass * v * candidate
            new_l2 = other_l2 + mass * candidate * candidate
            better = (
                (other_lx > zero)
                & (other_l2 > zero)
                & (candidate != number)
                & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            )
            store(numbers, i, select(better, _as_byte(candidate), number))
            sum_lx = select(better, new_lx, sum_lx)
            sum_l2 = select(better, new_l2, sum_l2)
            changed = changed | better
        if not any_lane(changed):
            break

    zeros = largest < splat(GROUP_MAX_EPS)
    for i in range(0, end, LANES):
        store(numbers, i, select(zeros, zero, load(numbers, i)))
    return select(~zeros & (sum_l2 > zero), sum_lx / sum_l2, zero)


@helper
def _side_by_side(values: Any, first: Any, n_superblocks: Any, count: Any, out: Any) -> None:
    """Value j of superblock k, values[first + count * k + j], to out[16 * j + k]; further lanes stay as they are."""
    for k in range(n_superblocks):
        for j in range(count):
            out[LANES * j + k] = values[first + count * k + j]


@kernel(FLOATS_IN, INT, SCALE_NUMBERS, FLOATS_OUT, BYTES_OUT)
def find_scale_numbers(found: Any, n_superblocks: int, form: ScaleNumbers, factors: Any, numbers: Any) -> None:
    """The numbers and factors of the scales and minimums that a search found.

    found: float32 [PARTS * n], see `llmkit.kernels.kquant_affine`. factors: float32 [2, room], first those of the
    scales; numbers: uint8 [2, room for sub-blocks], likewise; both flat, with room for whole sixteens of superblocks.
    """
    values = np.zeros(LANES * LANES, np.float32)
    masses = np.zeros(LANES * LANES, np.float32)
    chosen = np.empty(LANES * LANES, np.float32)
    n = found.size // PARTS
    for first in range(0, n_superblocks, LANES):
        left = min(LANES, n_superblocks - first)
        at = first * form.sub_blocks
        if form.fitted:
            _side_by_side(found, MASS * n + at, left, form.sub_blocks, masses)
        for which in range(2):
            part = SCALE if which == 0 else MINUS_MINIMUM
            _side_by_side(found, part * n + at, left, form.sub_blocks, values)
            if form.fitted:
                factor = _by_fit(values, masses, chosen, form)
            else:
                factor = _by_largest(values, chosen, form)
            store(factors, which * (factors.size // 2) + first, factor)
            to = which * (numbers.size // 2) + at
            for k in range(left):
                for j in range(form.sub_blocks):
                    numbers[to + form.sub_blocks * k + j] = min(form.largest_byte, np.int64(chosen[LANES * j + k]))


@helper
def write_scales(factors: Any, superblock: Any, numbers: Any, sub_block: Any, out: Any, at: Any) -> None:
    """Write the 16 bytes of a superblock's scales and minimums to out[at : at + 16]; see `find_scale_numbers`.

    Numbers of more than 6 bits, which stem from negative scales, spill into others' bits as in C.
    """
    put_f16(out, at, factors[superblock])
    put_f16(out, at + 2, factors[factors.size // 2 + superblock])
    minimums = numbers.size // 2 + sub_block
    for j in range(4):
        scale, high_scale = numbers[sub_block + j], numbers[sub_block + 4 + j]
        minimum, high_minimum = numbers[minimums + j], numbers[minimums + 4 + j]
        out[at + 4 + j] = scale | (high_scale >> 4) << 6
        out[at + 8 + j] = minimum | (high_minimum >> 4) << 6
        out[at + 12 + j] = (high_scale & 15) | (high_minimum & 15) << 4


@helper
def read_scales(packed: Any, at: Any, scales: Any, minimums: Any) -> None:
    """Read the 16 bytes at packed[at:] into eight float32 scales and eight float32 minimums."""
    d = first_float(get_f16(packed, at))
    dmin = first_float(get_f16(packed, at + 2))
    for j in range(4):
        low, middle, high = packed[at + 4 + j], packed[at + 8 + j], packed[at + 12 + j]
        scales[j] = d * np.float32(low & 63)
        minimums[j] = dmin * np.float32(middle & 63)
        scales[j + 4] = d * np.float32((high & 15) | ((low >> 6) << 4))
        minimums[j + 4] = dmin * np.float32((high >> 4) | ((middle >> 6) << 4))


@helper
def round_codes(
    x: Any, start: Any, size: Any, highest: Any, found: Any, sub_block: Any, scales: Any, minimums: Any, codes: Any
) -> None:
    """Round the superblock x[start : start + 256] to bytes `codes` with its scales and minimums as they are read back.

    size: weights of a sub-block, 16 or 32. A sub-block whose stored scale is zero keeps the codes of its search, which
    are those of `found` from element `sub_block` on.
    """
    for j in range(scales.size):
        if scales[j] != _ZERO:
            scale, minimum = splat(scales[j]), splat(minimums[j])
            for i in range(size * j, size * (j + 1), LANES):
                store_u8(codes, i, nearest_codes((load(x, start + i) + minimum) / scale, 0, highest))
        else:
            for i in range(size * j, size * (j + 1), LANES):
                store_u8(codes, i, found_codes(load(x, start + i), found, sub_block + j, highest))
