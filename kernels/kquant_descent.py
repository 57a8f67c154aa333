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

from llmkit.kernels.intlanes import bits_of, from_bits, select_int, splat_int, store_u8, to_float, to_int
from llmkit.kernels.jit import BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, SUPERBLOCK, nearest_codes
from llmkit.kernels.kquant_symmetric import SUB_BLOCK, SUB_BLOCKS
from llmkit.kernels.lanes import LANES, absolute, any_lane, load, select, splat, store, transpose

_REACH: Final = 4
_PASSES: Final = 5
_TURNS: Final = 8
_ZERO: Final = np.float32(0)

# The state of a superblock: weight i of the sub-block in lane l at 16 * i + l of four areas, then sixteen lanes each of
# what the least-squares scale is the quotient of, and of bits that differ from zero where a pass changed a code.
_SQUARES: Final = SUPERBLOCK
_CUBES: Final = 2 * SUPERBLOCK
_CODES: Final = 3 * SUPERBLOCK
_SUM_LX: Final = 4 * SUPERBLOCK
_SUM_L2: Final = _SUM_LX + LANES
_CHANGED: Final = _SUM_L2 + LANES
_STATE: Final = _CHANGED + LANES


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
def _improve(state: Any, at: Any, i: Any) -> None:
    """Improve the code of the weight at state[at + i] of each lane, and note in state[at + _CHANGED] where it changed.

    Lanes where a condition fails get a number that is below what they are compared with, and changes are differences of
    bits: on processors with AVX2 joining masks of sixteen lanes, and storing under a mask, would take longer than all
    the arithmetic. Three different numbers, as LLVM would join the masks of equal ones.
    """
    zero = splat(_ZERO)
    v, code = load(state, at + i), load(state, at + _CODES + i)
    square, cube = load(state, at + _SQUARES + i), load(state, at + _CUBES + i)
    sum_lx, sum_l2 = load(state, at + _SUM_LX), load(state, at + _SUM_L2)
    others_lx = sum_lx - cube * code
    others_l2 = sum_l2 - square * code * code
    new_code = _codes_of(v * others_l2 / others_lx)
    new_lx = others_lx + cube * new_code
    new_l2 = others_l2 + square * new_code * new_code
    explained = new_lx * new_lx * sum_l2
    explained = select(new_code != code, explained, splat(np.float32(-1)))
    explained = select(others_lx > zero, explained, splat(np.float32(-2)))
    explained = select(new_l2 > zero, explained, splat(np.float32(-np.inf)))
    better = explained > sum_lx * sum_lx * new_l2  # which is not negative where new_l2 is positive
    change = _replace(state, at + _CODES + i, code, new_code, better)
    store(state, at + _CHANGED, from_bits(bits_of(load(state, at + _CHANGED)) | change))
    _replace(state, at + _SUM_LX, sum_lx, new_lx, better)
    _replace(state, at + _SUM_L2, sum_l2, new_l2, better)


@helper
def _replace(state: Any, at: Any, old: Any, new: Any, where: Any) -> Any:
    """Store `new` in the lanes of `where` over `old`, which is there; returns the bits that changed."""
    change = select_int(where, bits_of(old) ^ bits_of(new), splat_int(0))
    store(state, at, from_bits(bits_of(old) ^ change))
    return change


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
    n_superblocks = weights.size // SUPERBLOCK
    for first in range(0, n_superblocks, _TURNS):
        turns = min(_TURNS, n_superblocks - first)
        for turn in range(turns):
            active[turn] = turn * _STATE
            transpose(weights, (first + turn) * SUPERBLOCK, SUB_BLOCK, states, turn * _STATE)
            _start(states, turn * _STATE)
        n_active = turns
        for _ in range(_PASSES):
            for k in range(n_active):
                store(states, active[k] + _CHANGED, splat(_ZERO))
            for i in range(0, SUPERBLOCK, LANES):
                for k in range(n_active):
                    _improve(states, active[k], i)
            n_left = 0
            for k in range(n_active):
                if any_lane(~(bits_of(load(states, active[k] + _CHANGED)) == splat_int(0))):
                    active[n_left] = active[k]
                    n_left += 1
            n_active = n_left
        for turn in range(turns):
            _finish(states, turn * _STATE, scales, codes, first + turn)
