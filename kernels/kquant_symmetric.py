"""Signed scales of groups of weights, as ggml's `make_qx_quants` finds them.

A group is stored as w = scale * (code - reach) with codes 0 .. 2 * reach - 1. The weight of largest magnitude maps to
about -reach; the search tries eighteen other inverse scales around that one and keeps the least-squares scale that
explains the most of the weights' energy. Groups are independent: sixteen of them are searched side by side, one per
lane, with additions in each lane in ggml's order.

Source: ggml/src/ggml-quants.c of llama.cpp (make_qx_quants with rmse_type 1, and its callers).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.intlanes import store_u8
from llmkit.kernels.jit import BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, ROUNDING_MAGIC, nearest_codes
from llmkit.kernels.lanes import LANES, absolute, load, select, splat, sqrt, store, transpose

SUB_BLOCK: Final = 16
SUB_BLOCKS: Final = 16  # of a superblock

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_STEP: Final = np.float32(0.1)
_N_STEPS: Final = 9  # on either side
_LARGEST: Final = np.finfo(np.float32).max

# Weight i of the group in lane l stands at 16 * i + l of an area of `columns`; groups have 32 weights at most.
_AREA: Final = 32 * LANES
_COUNTS: Final = _AREA  # what a weight counts
_PRODUCTS: Final = 2 * _AREA  # count * weight


@helper
def _fill_columns(
    rows: Any, size: Any, mean_square: Any, with_importance: Any, with_mean_square: Any, columns: Any
) -> Any:
    """Sixteen groups, one after the other in `rows`, as columns, and what they count; the sum of each lane's counts.

    rows: the weights from 0 on, the importances from _COUNTS on.
    """
    for area in range(0, 2 * _AREA, _AREA):
        for i in range(0, size, LANES):
            transpose(rows, area + i, size, columns, area + LANES * i)
    mass = splat(_ZERO)
    for i in range(0, size * LANES, LANES):
        v = load(columns, i)
        importance = load(columns, _COUNTS + i)
        count = v * v
        if with_mean_square:
            count = importance * sqrt(mean_square + count)
        elif with_importance:
            count = importance
        store(columns, _COUNTS + i, count)
        mass = mass + count
    return mass


@helper
def _search_lanes(columns: Any, size: Any, reach: Any) -> Any:
    """(scale, inverse scale of the codes that the search settled on, whether ggml takes the group for zeros).

    |inverse * w| never exceeds reach + 1 by more than rounding where a group has a scale at all, so that rounding can
    be done in float32; in lanes of zeros the results mean nothing.
    """
    end = size * LANES
    zero = splat(_ZERO)
    largest = zero
    extreme = zero
    for i in range(0, end, LANES):
        v = load(columns, i)
        magnitude = absolute(v)
        larger = magnitude > largest
        largest = select(larger, magnitude, largest)
        extreme = select(larger, v, extreme)
        # The code of NaN is 0 in C, as is that of an infinite weight, but not below, where rounding takes NaN for the
        # lowest code. A count of zero, or NaN where the count is not finite, has the same effect on the sums.
        count = load(columns, _COUNTS + i)
        count = select(magnitude <= splat(_LARGEST), count, count * zero)
        store(columns, _COUNTS + i, count)
        store(columns, _PRODUCTS + i, count * v)

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
        for i in range(0, end, LANES):
            rounded = inverse * load(columns, i) + magic
            rounded = select(rounded > magic_low, rounded, magic_low)
            code = select(rounded < magic_high, rounded, magic_high) - magic
            sum_lx = sum_lx + load(columns, _PRODUCTS + i) * code
            sum_l2 = sum_l2 + load(columns, _COUNTS + i) * code * code
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
    return scale, best_inverse, largest < splat(GROUP_MAX_EPS)


@kernel(FLOATS_IN, types.float32, FLOATS_IN, FLOATS_IN, FLOATS_OUT, BYTES_OUT)
def search(
    weights: NDArray[np.float32],
    reach: np.float32,
    importance: NDArray[np.float32],
    mean_squares: NDArray[np.float32],
    found: NDArray[np.float32],
    codes: NDArray[np.uint8],
) -> None:
    """Search all groups of the weights of whole rows.

    importance: of each column, or of size 0: then a weight counts its square. mean_squares: of each row or superblock;
    then a weight counts importance * sqrt(mean square + w^2). Of size 0: it counts its importance.
    found: takes the scale of each group and then the sum of each group's counts; its size is twice the number of
    groups, and so tells their size, 16 or 32. codes: takes the code of each weight; in a group that ggml takes for
    zeros, all are zero, as is the scale.
    """
    n_groups = found.size // 2
    lowest = np.int32(reach)
    if n_groups == 0:
        return
    size = weights.size // n_groups
    run = weights.size // mean_squares.size if mean_squares.size else 0
    rows = np.zeros(2 * _AREA, np.float32)
    columns = np.empty(3 * _AREA, np.float32)
    means = np.zeros(LANES, np.float32)
    lanes = np.empty(2 * LANES, np.float32)
    at_column = 0
    at_mean = 0
    left_of_run = run
    for first in range(0, n_groups, LANES):
        n_lanes = min(LANES, n_groups - first)
        for lane in range(n_lanes):
            for i in range(0, size, LANES):
                store(rows, size * lane + i, load(weights, size * (first + lane) + i))
            if importance.size:
                for i in range(0, size, LANES):
                    store(rows, _COUNTS + size * lane + i, load(importance, at_column + i))
                at_column += size
                if at_column == importance.size:
                    at_column = 0
            if mean_squares.size:
                means[lane] = mean_squares[at_mean]
                left_of_run -= size
                if left_of_run == 0:
                    left_of_run = run
                    at_mean += 1
        for i in range(size * n_lanes, size * LANES, LANES):
            store(rows, i, splat(_ZERO))
        mass = _fill_columns(rows, size, load(means, 0), importance.size > 0, mean_squares.size > 0, columns)
        scale, inverse, zeros = _search_lanes(columns, size, reach)

        store(lanes, 0, select(zeros, splat(_ZERO), scale))
        store(lanes, LANES, mass)
        for lane in range(n_lanes):
            found[first + lane] = lanes[lane]
            found[n_groups + first + lane] = lanes[LANES + lane]
        # Weights of zeros, times zero and shifted by nothing, have code 0 and not reach.
        store(lanes, 0, select(zeros, splat(_ZERO), inverse))
        store(lanes, LANES, select(zeros, splat(_ZERO), splat(reach)))
        for lane in range(n_lanes):
            inverse_of_lane, shift = splat(lanes[lane]), np.int64(lanes[LANES + lane])
            for i in range(size * lane, size * (lane + 1), LANES):
                code = nearest_codes(inverse_of_lane * load(rows, i), -lowest, lowest - 1) + shift
                store_u8(codes, size * first + i, code)


@helper
def extreme_scale(scales: Any, first: Any) -> Any:
    """The scale of largest magnitude among scales[first : first + 16], the first of several; 0 if all are 0 or NaN."""
    extreme = _ZERO
    for j in range(first, first + SUB_BLOCKS):
        if abs(scales[j]) > abs(extreme):
            extreme = scales[j]
    return extreme


@helper
def round_codes(x: Any, start: Any, steps: Any, reach: Any, codes: Any) -> None:
    """Round the superblock x[start : start + 256] to codes[start : start + 256]: w = step * (code - reach).

    steps: float32 of its sixteen sub-blocks, the scales as they were stored; where one is zero, the codes of the
    search stay. reach: an int32.
    """
    for j in range(SUB_BLOCKS):
        if steps[j] != _ZERO:
            at = start + LANES * j
            store_u8(codes, at, nearest_codes(load(x, at) / splat(steps[j]), -reach, reach - 1) + np.int64(reach))
