"""Signed scales of 16-weight sub-blocks of few codes, as ggml's `make_q3_quants` finds them.

A sub-block is stored as w = scale * code with codes -4 .. 3, each weight's error counted by its square. The weight of
largest magnitude maps to -4 at first. Then the codes are improved one after the other: each becomes what the
least-squares scale of the fifteen others makes of its weight, if the weights' energy is explained better with it. That
goes on until a pass changes no code, five passes at most.

Each improvement waits for the one before, so the sixteen sub-blocks of a superblock take their passes side by side, one
per lane, and four superblocks take turns. Further passes change nothing in a lane that is done.

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
_PASSES: Final = 5
_TURNS: Final = 4
_ZERO: Final = np.float32(0)

# What is kept of a superblock while it is worked on: weight i of the sub-block in lane l at 16 * i + l of four areas,
# then sixteen lanes each of what the least-squares scale is the quotient of, and of whether there is a scale.
_SQUARES: Final = SUPERBLOCK
_CUBES: Final = 2 * SUPERBLOCK
_CODES: Final = 3 * SUPERBLOCK
_SUM_LX: Final = 4 * SUPERBLOCK
_SUM_L2: Final = _SUM_LX + LANES
_LARGEST: Final = _SUM_L2 + LANES
_STATE: Final = _LARGEST + LANES


@helper
def _codes_of(lanes: Any) -> Any:
    return to_float(nearest_codes(lanes, -_REACH, _REACH - 1))


@helper
def _start(state: Any, at: Any) -> None:
    """Round the weights at state[at] to their first codes."""
    zero = splat(_ZERO)
    largest = zero
    extreme = zero
    for i in range(at, at + SUPERBLOCK, LANES):
        v = load(state, i)
        magnitude = absolute(v)
        larger = magnitude > largest
        largest = select(larger, magnitude, largest)
        extreme = select(larger, v, extreme)
    inverse = splat(np.float32(-_REACH)) / extreme
    sum_lx = zero
    sum_l2 = zero
    for i in range(at, at + SUPERBLOCK, LANES):
        v = load(state, i)
        code = _codes_of(inverse * v)
        square = v * v
        cube = square * v
        store(state, _CODES + i, code)
        store(state, _SQUARES + i, square)
        store(state, _CUBES + i, cube)
        sum_lx = sum_lx + cube * code
        sum_l2 = sum_l2 + square * code * code
    store(state, at + _SUM_LX, sum_lx)
    store(state, at + _SUM_L2, sum_l2)
    store(state, at + _LARGEST, largest)


@helper
def _improve(state: Any, at: Any, i: Any) -> Any:
    """Improve the code of the weight at state[at + i] in each lane; where that changed it."""
    zero = splat(_ZERO)
    v, code = load(state, at + i), load(state, at + _CODES + i)
    square, cube = load(state, at + _SQUARES + i), load(state, at + _CUBES + i)
    sum_lx, sum_l2 = load(state, at + _SUM_LX), load(state, at + _SUM_L2)
    others_lx = sum_lx - cube * code
    others_l2 = sum_l2 - square * code * code
    new_code = _codes_of(v * others_l2 / others_lx)
    new_lx = others_lx + cube * new_code
    new_l2 = others_l2 + square * new_code * new_code
    better = (new_l2 > zero) & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
    better = better & (others_lx > zero) & (new_code != code)
    store(state, at + _CODES + i, select(better, new_code, code))
    store(state, at + _SUM_LX, select(better, new_lx, sum_lx))
    store(state, at + _SUM_L2, select(better, new_l2, sum_l2))
    return better


@kernel(FLOATS_IN, FLOATS_OUT, BYTES_OUT)
def descend(weights: Any, scales: Any, codes: Any) -> None:
    """The scale of each sub-block and the code of each weight, shifted to 0 .. 7.

    In a sub-block that ggml takes for zeros, scale and codes are zero.
    """
    state = np.zeros(_TURNS * _STATE, np.float32)
    natural = np.empty(SUPERBLOCK, np.float32)
    zero = splat(_ZERO)
    n_superblocks = weights.size // SUPERBLOCK
    for first in range(0, n_superblocks, _TURNS):
        end = min(_TURNS, n_superblocks - first) * _STATE
        for at in range(0, end, _STATE):
            transpose(weights, (first + at // _STATE) * SUPERBLOCK, SUB_BLOCK, state, at)
            _start(state, at)
        for _ in range(_PASSES):
            changed = zero > zero
            for i in range(0, SUPERBLOCK, LANES):
                for at in range(0, end, _STATE):
                    changed = changed | _improve(state, at, i)
            if not any_lane(changed):
                break
        for at in range(0, end, _STATE):
            block = first + at // _STATE
            sum_lx, sum_l2 = load(state, at + _SUM_LX), load(state, at + _SUM_L2)
            not_zeros = splat(GROUP_MAX_EPS) <= load(state, at + _LARGEST)
            store(scales, block * SUB_BLOCKS, select(not_zeros & (sum_l2 > zero), sum_lx / sum_l2, zero))
            for i in range(at, at + SUPERBLOCK, LANES):
                store(state, i, select(not_zeros, load(state, _CODES + i) + splat(np.float32(_REACH)), zero))
            transpose(state, at, LANES, natural, 0)
            for i in range(0, SUPERBLOCK, LANES):
                store_u8(codes, block * SUPERBLOCK + i, to_int(load(natural, i)))
