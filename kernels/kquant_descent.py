"""Signed scales of 16-weight sub-blocks of few codes, as ggml's `make_q3_quants` finds them.

A sub-block is stored as w = scale * code with codes -4 .. 3, each weight's error counted by its square. The weight of
largest magnitude maps to -4 at first. Then the codes are improved one after the other: each becomes what the
least-squares scale of the fifteen others makes of its weight, if the weights' energy is explained better with it. That
goes on until a pass changes no code, five passes at most. Sixteen sub-blocks take their passes side by side, one per
lane; a lane that is done is not changed by further passes.

Source: ggml/src/ggml-quants.c of llama.cpp (make_q3_quants with do_rmse).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.intlanes import store_u8, to_float, to_int
from llmkit.kernels.jit import BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, SUPERBLOCK, nearest_codes
from llmkit.kernels.kquant_symmetric import SUB_BLOCK, SUB_BLOCKS
from llmkit.kernels.lanes import LANES, absolute, any_lane, load, select, splat, store, transpose

_REACH: Final = 4
_LAST_PASS: Final = 5
_ZERO: Final = np.float32(0)

# Weight i of the sub-block in lane l stands at 16 * i + l of an area of `columns`.
_SQUARES: Final = SUPERBLOCK
_CUBES: Final = 2 * SUPERBLOCK
_CODES: Final = 3 * SUPERBLOCK


@helper
def _codes_of(lanes: Any) -> Any:
    return to_float(nearest_codes(lanes, -_REACH, _REACH - 1))


@helper
def _descend_lanes(columns: Any) -> Any:
    """Scales of sixteen sub-blocks; their codes shifted by 4 take the place of the weights in `columns`."""
    zero = splat(_ZERO)
    largest = zero
    extreme = zero
    for i in range(0, SUPERBLOCK, LANES):
        v = load(columns, i)
        magnitude = absolute(v)
        larger = magnitude > largest
        largest = select(larger, magnitude, largest)
        extreme = select(larger, v, extreme)
    not_zeros = splat(GROUP_MAX_EPS) <= largest

    inverse = splat(np.float32(-_REACH)) / extreme
    sum_lx = zero
    sum_l2 = zero
    for i in range(0, SUPERBLOCK, LANES):
        v = load(columns, i)
        code = _codes_of(inverse * v)
        square = v * v
        cube = square * v
        store(columns, _CODES + i, code)
        store(columns, _SQUARES + i, square)
        store(columns, _CUBES + i, cube)
        sum_lx = sum_lx + cube * code
        sum_l2 = sum_l2 + square * code * code

    for _ in range(_LAST_PASS):
        changed = zero > zero
        for i in range(0, SUPERBLOCK, LANES):
            v, code = load(columns, i), load(columns, _CODES + i)
            square, cube = load(columns, _SQUARES + i), load(columns, _CUBES + i)
            others_lx = sum_lx - cube * code
            others_l2 = sum_l2 - square * code * code
            new_code = _codes_of(v * others_l2 / others_lx)
            new_lx = others_lx + cube * new_code
            new_l2 = others_l2 + square * new_code * new_code
            better = (new_l2 > zero) & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            better = better & not_zeros & (others_lx > zero) & (new_code != code)
            store(columns, _CODES + i, select(better, new_code, code))
            sum_lx = select(better, new_lx, sum_lx)
            sum_l2 = select(better, new_l2, sum_l2)
            changed = changed | better
        if not any_lane(changed):
            break

    for i in range(0, SUPERBLOCK, LANES):
        store(columns, i, select(not_zeros, load(columns, _CODES + i) + splat(np.float32(_REACH)), zero))
    return select(not_zeros & (sum_l2 > zero), sum_lx / sum_l2, zero)


@kernel(FLOATS_IN, FLOATS_OUT, BYTES_OUT)
def descend(weights: Any, scales: Any, codes: Any) -> None:
    """The scale of each sub-block and the code of each weight, shifted to 0 .. 7.

    In a sub-block that ggml takes for zeros, scale and codes are zero.
    """
    columns = np.empty(4 * SUPERBLOCK, np.float32)
    natural = np.empty(SUPERBLOCK, np.float32)
    for block in range(weights.size // SUPERBLOCK):
        start = block * SUPERBLOCK
        transpose(weights, start, SUB_BLOCK, columns, 0)
        store(scales, SUB_BLOCKS * block, _descend_lanes(columns))
        transpose(columns, 0, LANES, natural, 0)
        for i in range(0, SUPERBLOCK, LANES):
            store_u8(codes, start + i, to_int(load(natural, i)))
