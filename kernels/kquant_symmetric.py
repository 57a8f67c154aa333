"""Signed scales of groups of weights, as ggml's `make_qx_quants` finds them.

A group is stored as w = scale * (code - reach) with codes 0 .. 2 * reach - 1. The weight of largest magnitude maps to
about -reach; the search tries eighteen other inverse scales around that one and keeps the least-squares scale that
explains the most of the weights' energy, each weight counted by its importance. Sixteen groups are searched side by
side, one per lane: the sub-blocks of a superblock of 256, the scales of sixteen superblocks, or sixteen blocks of 32.

Source: ggml/src/ggml-quants.c of llama.cpp (make_qx_quants with rmse_type 1).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.intlanes import store_u8
from llmkit.kernels.jit import helper
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, ROUNDING_MAGIC, nearest_codes
from llmkit.kernels.lanes import LANES, absolute, load, select, splat, store

SUB_BLOCK: Final = 16
SUB_BLOCKS: Final = 16
FOUND: Final = 3 * LANES

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_STEP: Final = np.float32(0.1)
_N_STEPS: Final = 9  # on either side
_LARGEST: Final = np.finfo(np.float32).max


@helper
def search_signed(columns: Any, n: Any, reach: Any, found: Any, at: Any) -> None:
    """Search sixteen groups of n weights.

    columns: float32, 3 * 16 * n long: weight i of group `lane` at 16 * i + lane; then, in the same order, the
        importances; then room for products.
    reach: float32, a whole number.
    found: float32, of which found[at : at + FOUND] takes three lots of sixteen: the scales; the inverse scales of the
        codes that the search settled on; what to add to those codes, reach. In a group that ggml takes for zeros, all
        three are zero. `searched_codes` makes codes of them.

    |inverse * w| never exceeds reach + 1 by more than rounding where a group has a scale at all, so that rounding can
    be done in float32; in the other lanes the results are not used.
    """
    size = n * LANES
    importance_at = size
    product_at = 2 * size
    zero = splat(_ZERO)
    largest = zero
    extreme = zero
    for i in range(0, size, LANES):
        v = load(columns, i)
        magnitude = absolute(v)
        larger = magnitude > largest
        largest = select(larger, magnitude, largest)
        extreme = select(larger, v, extreme)
        # The inverse is zero if the extreme is infinite. Then NaN are rounded, as are NaN themselves; ggml makes them
        # zeros, rounding in float32 does not.
        importance = load(columns, importance_at + i)
        importance = select(magnitude <= splat(_LARGEST), importance, importance * zero)
        store(columns, importance_at + i, importance)
        store(columns, product_at + i, importance * v)

    magic = splat(ROUNDING_MAGIC)
    magic_low = splat(ROUNDING_MAGIC - reach)
    magic_high = splat(ROUNDING_MAGIC + reach - _ONE)
    scale = zero
    best = zero
    best_inverse = zero
    for step in range(2 * _N_STEPS + 1):
        # ggml starts from the middle and then goes from -9 to 9 without it.
        offset = 0 if step == 0 else step - _N_STEPS - 1 if step <= _N_STEPS else step - _N_STEPS
        inverse = splat(-(reach + _STEP * np.float32(offset))) / extreme
        sum_lx = zero
        sum_l2 = zero
        for i in range(0, size, LANES):
            rounded = inverse * load(columns, i) + magic
            rounded = select(rounded > magic_low, rounded, magic_low)
            code = select(rounded < magic_high, rounded, magic_high) - magic
            sum_lx = sum_lx + load(columns, product_at + i) * code
            sum_l2 = sum_l2 + load(columns, importance_at + i) * code * code
        fitted = sum_lx / sum_l2
        if step == 0:
            scale = select(sum_l2 != zero, fitted, zero)
            best = scale * sum_lx
            best_inverse = inverse
        else:
            better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
            scale = select(better, fitted, scale)
            best = select(better, fitted * sum_lx, best)
            best_inverse = select(better, inverse, best_inverse)

    zeros = largest < splat(GROUP_MAX_EPS)
    store(found, at, select(zeros, zero, scale))
    store(found, at + LANES, select(zeros, zero, best_inverse))
    store(found, at + 2 * LANES, select(zeros, zero, splat(reach)))


@helper
def searched_codes(lanes: Any, found: Any, at: Any, lane: Any, reach: Any) -> Any:
    """The codes, int32 lanes, that the search of group `lane` settled on for weights of that group."""
    offset = np.int32(found[at + 2 * LANES + lane])
    highest = np.int32(reach)
    return nearest_codes(splat(found[at + LANES + lane]) * lanes, -highest, highest - np.int32(1)) + np.int64(offset)


@helper
def extreme_scale(found: Any, at: Any) -> Any:
    """The scale of largest magnitude among found[at : at + 16], the first of several; 0 if there is none but NaN."""
    extreme = _ZERO
    for j in range(SUB_BLOCKS):
        if abs(found[at + j]) > abs(extreme):
            extreme = found[at + j]
    return extreme


@helper
def round_codes(x: Any, start: Any, steps: Any, reach: Any, codes: Any) -> None:
    """Round the superblock x[start : start + 256] to bytes `codes`: w = step * (code - reach).

    A sub-block whose step, the scale as it was stored, is zero keeps the codes that it has, those of its search.
    """
    highest = np.int32(reach)
    for j in range(SUB_BLOCKS):
        if steps[j] != _ZERO:
            quotients = load(x, start + SUB_BLOCK * j) / splat(steps[j])
            code = nearest_codes(quotients, -highest, highest - np.int32(1)) + np.int64(highest)
            store_u8(codes, SUB_BLOCK * j, code)
