"""Signed scales of 16-weight sub-blocks of few codes, as ggml's `make_q3_quants` finds them.

A sub-block is stored as w = scale * code with codes -4 .. 3, each weight's error counted by its square. The weight of
largest magnitude maps to -4 at first. Then the codes are improved one after the other: each becomes what the
least-squares scale of the fifteen others makes of its weight, if the weights' energy is explained better with it. That
goes on until a pass changes no code, five passes at most.

The sixteen sub-blocks of a superblock take their passes side by side, one per lane; further passes change nothing in a
lane that is done. Eight superblocks take turns, since each improvement waits for the one before.

Source: ggml/src/ggml-quants.c of llama.cpp (make_q3_quants with do_rmse).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.intlanes import mask_bits, store_u8, to_float, to_int
from llmkit.kernels.jit import BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, SUPERBLOCK, nearest_codes
from llmkit.kernels.kquant_symmetric import SUB_BLOCK, SUB_BLOCKS
from llmkit.kernels.lanes import LANES, absolute, load, select, splat, store, transpose

_REACH: Final = 4
_PASSES: Final = 5
_TURNS: Final = 8
_ZERO: Final = np.float32(0)

# The state of a superblock: weight i of the sub-block in lane l at 16 * i + l of four areas, then sixteen lanes each of
# what the least-squares scale is the quotient of.
_SQUARES: Final = SUPERBLOCK
_CUBES: Final = 2 * SUPERBLOCK
_CODES: Final = 3 * SUPERBLOCK
_SUM_LX: Final = 4 * SUPERBLOCK
_SUM_L2: Final = _SUM_LX + LANES
_STATE: Final = _SUM_L2 + LANES


@helper
def _codes_of(lanes: Any) -> Any:
    return to_float(nearest_codes(lanes, -_REACH, _REACH - 1))


@helper
def _start(state: Any, at: Any) -> None:
    """Round the weights at state[at] to their first codes.

    What ggml takes for zeros becomes zeros, with the lowest code; without sums, that is not improved.
    """
    zero = splat(_ZERO)
    largest = zero
    extreme = zero
    for i in range(at, at + SUPERBLOCK, LANES):
        v = load(state, i)
        magnitude = absolute(v)
        larger = magnitude > largest
        largest = select(larger, magnitude, largest)
        extreme = select(larger, v, extreme)
    zeros = largest < splat(GROUP_MAX_EPS)
    inverse = splat(np.float32(-_REACH)) / extreme
    sum_lx = zero
    sum_l2 = zero
    for i in range(at, at + SUPERBLOCK, LANES):
        v = select(zeros, zero, load(state, i))
        code = select(zeros, splat(np.float32(-_REACH)), _codes_of(inverse * v))
        square = v * v
        cube = square * v
        store(state, i, v)
        store(state, _CODES + i, code)
        store(state, _SQUARES + i, square)
        store(state, _CUBES + i, cube)
        sum_lx = sum_lx + cube * code
        sum_l2 = sum_l2 + square * code * code
    store(state, at + _SUM_LX, sum_lx)
    store(state, at + _SUM_L2, sum_l2)


@helper
def _improve(state: Any, at: Any, i: Any) -> Any:
    """Improve the code of the weight at state[at + i] of each lane; a bit for each lane where that changed it."""
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
    return mask_bits(better)


@helper
def _finish(state: Any, at: Any, scales: Any, codes: Any, block: Any) -> None:
    """The scales of the superblock `block` and its codes, shifted to 0 .. 7; state[at] is overwritten."""
    zero = splat(_ZERO)
    sum_lx, sum_l2 = load(state, at + _SUM_LX), load(state, at + _SUM_L2)
    store(scales, block * SUB_BLOCKS, select(sum_l2 > zero, sum_lx / sum_l2, zero))
    transpose(state, at + _CODES, LANES, state, at)
    for i in range(0, SUPERBLOCK, LANES):
        store_u8(codes, block * SUPERBLOCK + i, to_int(load(state, at + i)) + _REACH)


@kernel(FLOATS_IN, FLOATS_OUT, BYTES_OUT)
def descend(weights: Any, scales: Any, codes: Any) -> None:
    """The scale of each sub-block and the code of each weight, shifted to 0 .. 7.

    In a sub-block that ggml takes for zeros, scale and codes are zero.
    """
    states = np.empty(_TURNS * _STATE, np.float32)
    active = np.empty(_TURNS, np.int64)
    changed = np.empty(_TURNS, np.int32)
    n_superblocks = weights.size // SUPERBLOCK
    for first in range(0, n_superblocks, _TURNS):
        turns = min(_TURNS, n_superblocks - first)
        for turn in range(turns):
            active[turn] = turn * _STATE
            transpose(weights, (first + turn) * SUPERBLOCK, SUB_BLOCK, states, turn * _STATE)
            _start(states, turn * _STATE)
        n_active = turns
        for _ in range(_PASSES):
            changed[:] = 0
            for i in range(0, SUPERBLOCK, LANES):
                for k in range(n_active):
                    changed[k] |= _improve(states, active[k], i)
            n_left = 0
            for k in range(n_active):
                if changed[k]:
                    active[n_left] = active[k]
                    n_left += 1
            n_active = n_left
        for turn in range(turns):
            _finish(states, turn * _STATE, scales, codes, first + turn)
