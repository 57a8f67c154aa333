"""Scale and minimum of sub-blocks of weights, as ggml's `make_qkx2_quants` and `make_qkx3_quants` find them.

A sub-block is stored as codes 0..highest with w = scale * code + minimum, minimum <= 0. The search tries the inverse
scales (highest + first + step * k) / (maximum - minimum) for k = 0 .. last_step: each time it rounds the weights to
codes, fits scale and minimum to the codes by weighted least squares, and keeps the fit if its weighted error is the
smallest so far. A kept minimum is the one from which later candidates are measured, so candidates depend on each other
and only sub-blocks are independent: `search` takes sixteen of them side by side, one per lane, and adds within each
lane in ggml's order.

What a weight counts and which error is measured is one of three (`AffineSearch.errors`):

- SPREAD: squares; a weight counts the root mean square of its sub-block plus its own magnitude.
- MAGNITUDE: absolute differences; a weight counts its magnitude.
- IMPORTANCE: squares; a weight counts importance * sqrt(m + w^2), with the importance of its column and m the mean
  square of the superblock or row it lies in.

Source: ggml/src/ggml-quants.c of llama.cpp (make_qkx2_quants, make_qkx3_quants and their callers).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import types

from llmkit.kernels.blocks import put_f16
from llmkit.kernels.intlanes import mask_bits
from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, INT, helper, kernel
from llmkit.kernels.kquant_rounding import ROUNDING_MAGIC, nearest_codes, nearest_int
from llmkit.kernels.lanes import LANES, absolute, load, select, splat, sqrt, store, transpose

SPREAD: Final = 0
MAGNITUDE: Final = 1
IMPORTANCE: Final = 2


class AffineSearch(NamedTuple):
    """What the search tries; see the module.

    size: weights of a sub-block, 16 or 32. highest: the largest code.
    """

    size: int
    highest: int
    first: np.float32
    step: np.float32
    last_step: int
    errors: int


AFFINE_SEARCH: Final = types.NamedTuple((INT, INT, types.float32, types.float32, INT, INT), AffineSearch)

# The parts of what `search` finds: a float32 for each sub-block.
SCALE: Final = 0
MINUS_MINIMUM: Final = 1
INVERSE: Final = 2  # inverse scale of the codes that the search settled on:
ORIGIN: Final = 3  # codes = nearest_int(inverse * (w - origin))
MASS: Final = 4  # the sum of what the weights count
PARTS: Final = 5

_MOST: Final = 32 * LANES
# Scratch: three areas, value i of sub-block `lane` at 16 * i + lane: weights, what they count, codes.
_COUNTS: Final = _MOST
_CODES: Final = 2 * _MOST
SCRATCH: Final = 3 * _MOST

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
# Up to here nearest_int is exact, and rounding, clamping and converting can be done in float32.
_ROUNDING_LIMIT: Final = np.float32(4194303.0)


@helper
def search_one(scratch: Any, lane: Any, form: Any) -> Any:
    """The search on one lane of `scratch`, operation by operation as in C; what weights count is there already.

    Returns float32 (scale, -minimum, inverse scale of the codes, minimum the codes were measured from); the last two
    give the codes that the search settled on: nearest_int(inverse_scale * (w - measured_from)).
    """
    end = form.size * LANES
    minimum = scratch[lane]
    maximum = scratch[lane]
    sum_w = scratch[_COUNTS + lane]
    sum_x = sum_w * scratch[lane]
    for i in range(LANES + lane, end, LANES):
        v = scratch[i]
        if v < minimum:
            minimum = v
        if v > maximum:
            maximum = v
        sum_w += scratch[_COUNTS + i]
        sum_x += scratch[_COUNTS + i] * v
    if minimum > _ZERO:
        minimum = _ZERO
    if maximum == minimum:
        return _ZERO, -minimum, _ZERO, minimum

    n_codes = np.float32(form.highest)
    scale = _ZERO
    best_error = _ZERO
    best_inverse = _ZERO
    measured_from = minimum
    # Step -1 is the range as it is, without a fit.
    for step in range(-1, form.last_step + 1):
        offset = form.first + form.step * np.float32(step) if step >= 0 else _ZERO
        inverse = (offset + n_codes) / (maximum - minimum)
        sum_l = _ZERO
        sum_l2 = _ZERO
        sum_xl = _ZERO
        for i in range(lane, end, LANES):
            code = np.float32(max(0, min(form.highest, nearest_int(inverse * (scratch[i] - minimum)))))
            scratch[_CODES + i] = code
            counted = scratch[_COUNTS + i] * code
            sum_l += counted
            sum_l2 += counted * code
            sum_xl += counted * scratch[i]
        fitted_scale = _ONE / inverse
        fitted_minimum = minimum
        if step >= 0:
            determinant = sum_w * sum_l2 - sum_l * sum_l
            if not determinant > _ZERO:
                continue
            fitted_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            fitted_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            if fitted_minimum > _ZERO:
                fitted_minimum = _ZERO
                fitted_scale = sum_xl / sum_l2
        error = _ZERO
        for i in range(lane, end, LANES):
            difference = fitted_scale * scratch[_CODES + i] + fitted_minimum - scratch[i]
            difference = abs(difference) if form.errors == MAGNITUDE else difference * difference
            error += scratch[_COUNTS + i] * difference
        if step < 0 or error < best_error:
            best_error = error
            scale = fitted_scale
            best_inverse = inverse
            measured_from = minimum
            minimum = fitted_minimum
    return scale, -minimum, best_inverse, measured_from


@helper
def search_lanes(scratch: Any, form: Any, found: Any, at: Any) -> None:
    """The search on sixteen sub-blocks whose weights and counts are in `scratch` (float32, SCRATCH long).

    `found` is float32 [PARTS * n]; the results go to elements `at` to at + 15 of each part.
    """
    end = form.size * LANES
    zero = splat(_ZERO)
    lowest = load(scratch, 0)
    maximum = lowest
    sum_w = load(scratch, _COUNTS)
    sum_x = sum_w * lowest
    for i in range(LANES, end, LANES):
        v = load(scratch, i)
        counts = load(scratch, _COUNTS + i)
        lowest = select(v < lowest, v, lowest)
        maximum = select(v > maximum, v, maximum)
        sum_w = sum_w + counts
        sum_x = sum_x + counts * v
    minimum = select(lowest > zero, zero, lowest)

    # A lane whose rounding could leave nearest_int's exact range, or which has no range, is searched again alone.
    limit = splat(_ROUNDING_LIMIT)
    in_range = zero == zero
    n_codes = np.float32(form.highest)
    magic = splat(ROUNDING_MAGIC)
    magic_top = splat(ROUNDING_MAGIC + n_codes)
    scale = zero
    best_error = zero
    best_inverse = zero
    measured_from = minimum
    # Step -1 is the range as it is, without a fit.
    for step in range(-1, form.last_step + 1):
        span = maximum - minimum
        inverse = splat(form.first + form.step * np.float32(step) + n_codes if step >= 0 else n_codes) / span
        in_range = in_range & (absolute(inverse * span) <= limit) & (absolute(inverse * (lowest - minimum)) <= limit)
        sum_l = zero
        sum_l2 = zero
        sum_xl = zero
        for i in range(0, end, LANES):
            v = load(scratch, i)
            rounded = inverse * (v - minimum) + magic
            rounded = select(rounded > magic, rounded, magic)
            code = select(rounded < magic_top, rounded, magic_top) - magic
            store(scratch, _CODES + i, code)
        # A loop of its own: AVX2's sixteen registers do not hold both these sums and what rounding takes.
        for i in range(0, end, LANES):
            v = load(scratch, i)
            code = load(scratch, _CODES + i)
            counted = load(scratch, _COUNTS + i) * code
            sum_l = sum_l + counted
            sum_l2 = sum_l2 + counted * code
            sum_xl = sum_xl + counted * v
        if step >= 0:
            determinant = sum_w * sum_l2 - sum_l * sum_l
            better = determinant > zero
            fitted_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            fitted_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            positive = fitted_minimum > zero
            fitted_minimum = select(positive, zero, fitted_minimum)
            fitted_scale = select(positive, sum_xl / sum_l2, fitted_scale)
        else:
            better = zero == zero
            fitted_scale = splat(_ONE) / inverse
            fitted_minimum = minimum
        error = zero
        if form.errors == MAGNITUDE:
            for i in range(0, end, LANES):
                difference = fitted_scale * load(scratch, _CODES + i) + fitted_minimum - load(scratch, i)
                error = error + load(scratch, _COUNTS + i) * absolute(difference)
        else:
            for i in range(0, end, LANES):
                difference = fitted_scale * load(scratch, _CODES + i) + fitted_minimum - load(scratch, i)
                error = error + load(scratch, _COUNTS + i) * (difference * difference)
        if step >= 0:
            better = better & (error < best_error)
        best_error = select(better, error, best_error)
        scale = select(better, fitted_scale, scale)
        best_inverse = select(better, inverse, best_inverse)
        measured_from = select(better, minimum, measured_from)
        minimum = select(better, fitted_minimum, minimum)

    n = found.size // PARTS
    store(found, SCALE * n + at, scale)
    store(found, MINUS_MINIMUM * n + at, -minimum)
    store(found, INVERSE * n + at, best_inverse)
    store(found, ORIGIN * n + at, measured_from)
    store(found, MASS * n + at, sum_w)
    out_of_range = mask_bits(~in_range)
    if out_of_range != 0:
        for lane in range(LANES):
            if (out_of_range >> lane) & 1:
                one = search_one(scratch, lane, form)
                found[SCALE * n + at + lane] = one[0]
                found[MINUS_MINIMUM * n + at + lane] = one[1]
                found[INVERSE * n + at + lane] = one[2]
                found[ORIGIN * n + at + lane] = one[3]


@helper
def _side_by_side(values: Any, size: Any, scratch: Any, to: Any) -> None:
    """Value i of the k-th of sixteen sub-blocks that lie one after the other to scratch[to + 16 * i + k]."""
    for i in range(0, size, LANES):
        transpose(values, i, size, scratch, to + i * LANES)


@helper
def _count_weights(scratch: Any, form: Any, mean_squares: Any) -> None:
    """What the weights in `scratch` count; for IMPORTANCE their importance is there in its place."""
    end = form.size * LANES
    if form.errors == SPREAD:
        sum_x2 = splat(_ZERO)
        for i in range(0, end, LANES):
            v = load(scratch, i)
            sum_x2 = sum_x2 + v * v
        root_mean_square = sqrt(sum_x2 / splat(np.float32(form.size)))
        for i in range(0, end, LANES):
            store(scratch, _COUNTS + i, root_mean_square + absolute(load(scratch, i)))
    elif form.errors == MAGNITUDE:
        for i in range(0, end, LANES):
            store(scratch, _COUNTS + i, absolute(load(scratch, i)))
    else:
        for i in range(0, end, LANES):
            v = load(scratch, i)
            store(scratch, _COUNTS + i, load(scratch, _COUNTS + i) * sqrt(mean_squares + v * v))


@kernel(FLOATS_IN, INT, INT, AFFINE_SEARCH, FLOATS_IN, FLOATS_IN, INT, FLOATS_OUT)
def search(
    weights: Any,
    start: int,
    stop: int,
    form: AffineSearch,
    importance: Any,
    mean_squares: Any,
    run: int,
    found: Any,
) -> None:
    """Search the sub-blocks of weights[start : stop]; both are multiples of the sub-block's size.

    found: float32 [PARTS * n] with room in each part for the sub-blocks, their number rounded up to sixteen.
    importance: float32 [columns], of which weights[0] has the first; mean_squares: float32, one for each `run`
    weights (see `llmkit.kernels.energy`). Only IMPORTANCE reads these three.
    """
    scratch = np.empty(SCRATCH, np.float32)
    values = np.empty(_MOST, np.float32)
    lane_squares = np.zeros(LANES, np.float32)
    size = form.size
    group = size * LANES
    column = start % importance.size if form.errors == IMPORTANCE else 0
    for position in range(start, stop, group):
        # The lanes of missing sub-blocks are zeros, whose search ends at once.
        n_values = min(group, stop - position)
        for i in range(0, group, LANES):
            store(values, i, load(weights, position + i) if i < n_values else splat(_ZERO))
        _side_by_side(values, size, scratch, 0)
        if form.errors == IMPORTANCE:
            for i in range(0, n_values, LANES):
                store(values, i, load(importance, column))
                column += LANES
                if column == importance.size:
                    column = 0
            _side_by_side(values, size, scratch, _COUNTS)
            for k in range(n_values // size):
                lane_squares[k] = mean_squares[(position + k * size) // run]
        _count_weights(scratch, form, load(lane_squares, 0))
        search_lanes(scratch, form, found, (position - start) // size)


@helper
def found_codes(lanes: Any, found: Any, sub_block: Any, highest: Any) -> Any:
    """The codes, int32 lanes, that a search settled on for sixteen weights of a sub-block."""
    n = found.size // PARTS
    inverse, origin = splat(found[INVERSE * n + sub_block]), splat(found[ORIGIN * n + sub_block])
    return nearest_codes(inverse * (lanes - origin), 0, highest)


@helper
def put_bounds(packed: Any, at: Any, found: Any, sub_block: Any) -> None:
    """Store what a search found for a sub-block, scale and minimum, as two float16 at byte `at`."""
    n = found.size // PARTS
    put_f16(packed, at, found[SCALE * n + sub_block])
    put_f16(packed, at + 2, -found[MINUS_MINIMUM * n + sub_block])
