"""Scale and minimum of 32-weight sub-blocks, as ggml's `make_qkx2_quants` finds them.

A sub-block is stored as codes 0..n_codes with w = scale * code + minimum, minimum <= 0. The search tries
`n_steps + 1` inverse scales; for each it rounds the weights to codes, fits scale and minimum to the codes by weighted
least squares, and keeps the fit when its weighted squared error is smaller. A kept minimum is the one from which later
candidates are measured, so candidates depend on each other and only sub-blocks are independent: `search_lanes` takes
sixteen of them side by side, one per lane, and adds within each lane in ggml's order.

Source: ggml/src/ggml-quants.c of llama.cpp (make_qkx2_quants, quantize_row_q4_K_ref).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.jit import helper
from llmkit.kernels.kquant_numbers import ROUNDING_MAGIC, clamp, nearest_int
from llmkit.kernels.lanes import LANES, absolute, any_lane, load, select, splat, sqrt, store

SUB_BLOCK: Final = 32

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_STEP: Final = np.float32(0.1)
_COUNT: Final = np.float32(SUB_BLOCK)
# Up to here nearest_int is exact, and rounding, clamping and converting can be done in float32.
_ROUNDING_LIMIT: Final = np.float32(4194303.0)


@helper
def search_one(x, start, n_codes, first_step, n_steps):
    """The search on one sub-block x[start : start + 32], operation by operation as in C.

    Returns float32 (scale, -minimum, inverse scale of the codes, minimum the codes were measured from); the last two
    give the codes that the search settled on: nearest_int(inverse_scale * (w - measured_from)).
    """
    weights = np.empty(SUB_BLOCK, np.float32)
    codes = np.empty(SUB_BLOCK, np.float32)
    sum_x2 = _ZERO
    for i in range(SUB_BLOCK):
        sum_x2 += x[start + i] * x[start + i]
    root_mean_square = np.float32(np.sqrt(sum_x2 / _COUNT))
    for i in range(SUB_BLOCK):
        weights[i] = root_mean_square + abs(x[start + i])

    minimum = x[start]
    maximum = x[start]
    sum_w = weights[0]
    sum_x = sum_w * x[start]
    for i in range(1, SUB_BLOCK):
        if x[start + i] < minimum:
            minimum = x[start + i]
        if x[start + i] > maximum:
            maximum = x[start + i]
        sum_w += weights[i]
        sum_x += weights[i] * x[start + i]
    if minimum > _ZERO:
        minimum = _ZERO
    if maximum == minimum:
        return _ZERO, -minimum, _ZERO, minimum

    top = np.int32(n_codes)
    inverse = n_codes / (maximum - minimum)
    scale = _ONE / inverse
    best_error = _ZERO
    for i in range(SUB_BLOCK):
        code = np.float32(clamp(nearest_int(inverse * (x[start + i] - minimum)), np.int32(0), top))
        difference = scale * code + minimum - x[start + i]
        best_error += weights[i] * (difference * difference)
    best_inverse = inverse
    measured_from = minimum

    for step in range(n_steps + 1):
        inverse = (first_step + _STEP * np.float32(step) + n_codes) / (maximum - minimum)
        sum_l = _ZERO
        sum_l2 = _ZERO
        sum_xl = _ZERO
        for i in range(SUB_BLOCK):
            code = np.float32(clamp(nearest_int(inverse * (x[start + i] - minimum)), np.int32(0), top))
            codes[i] = code
            weighted = weights[i] * code
            sum_l += weighted
            sum_l2 += weighted * code
            sum_xl += weighted * x[start + i]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        if determinant > _ZERO:
            fitted_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            fitted_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            if fitted_minimum > _ZERO:
                fitted_minimum = _ZERO
                fitted_scale = sum_xl / sum_l2
            error = _ZERO
            for i in range(SUB_BLOCK):
                difference = fitted_scale * codes[i] + fitted_minimum - x[start + i]
                error += weights[i] * (difference * difference)
            if error < best_error:
                best_error = error
                scale = fitted_scale
                best_inverse = inverse
                measured_from = minimum
                minimum = fitted_minimum
    return scale, -minimum, best_inverse, measured_from


@helper
def search_lanes(x, start, n_codes, first_step, n_steps, scratch, found):
    """The search on sixteen consecutive sub-blocks x[start : start + 512].

    `scratch` holds 3 * 512 float32. `found` takes four groups of sixteen float32: the results of `search_one`.
    n_codes, first_step: float32; the inverse scales tried are (first_step + 0.1 * step + n_codes) / range.
    """
    size = SUB_BLOCK * LANES
    weights_at = size
    codes_at = 2 * size
    # Weight i of all lanes side by side.
    for lane in range(LANES):
        for i in range(SUB_BLOCK):
            scratch[i * LANES + lane] = x[start + lane * SUB_BLOCK + i]

    zero = splat(_ZERO)
    sum_x2 = zero
    for i in range(0, size, LANES):
        v = load(scratch, i)
        sum_x2 = sum_x2 + v * v
    root_mean_square = sqrt(sum_x2 / splat(_COUNT))

    v = load(scratch, 0)
    lowest = v
    maximum = v
    sum_w = root_mean_square + absolute(v)
    sum_x = sum_w * v
    store(scratch, weights_at, sum_w)
    for i in range(LANES, size, LANES):
        v = load(scratch, i)
        w = root_mean_square + absolute(v)
        store(scratch, weights_at + i, w)
        lowest = select(v < lowest, v, lowest)
        maximum = select(v > maximum, v, maximum)
        sum_w = sum_w + w
        sum_x = sum_x + w * v
    minimum = select(lowest > zero, zero, lowest)

    # A lane whose rounding could leave nearest_int's exact range, or which has no range, is searched again alone.
    limit = splat(_ROUNDING_LIMIT)
    magic = splat(ROUNDING_MAGIC)
    magic_top = splat(ROUNDING_MAGIC + n_codes)

    span = maximum - minimum
    inverse = splat(n_codes) / span
    in_range = (absolute(inverse * span) <= limit) & (absolute(inverse * (lowest - minimum)) <= limit)
    scale = splat(_ONE) / inverse
    best_error = zero
    for i in range(0, size, LANES):
        v = load(scratch, i)
        rounded = inverse * (v - minimum) + magic
        rounded = select(rounded > magic, rounded, magic)
        code = select(rounded < magic_top, rounded, magic_top) - magic
        difference = scale * code + minimum - v
        best_error = best_error + load(scratch, weights_at + i) * (difference * difference)
    best_inverse = inverse
    measured_from = minimum

    for step in range(n_steps + 1):
        span = maximum - minimum
        inverse = splat(first_step + _STEP * np.float32(step) + n_codes) / span
        in_range = in_range & (absolute(inverse * span) <= limit) & (absolute(inverse * (lowest - minimum)) <= limit)
        sum_l = zero
        sum_l2 = zero
        sum_xl = zero
        for i in range(0, size, LANES):
            v = load(scratch, i)
            rounded = inverse * (v - minimum) + magic
            rounded = select(rounded > magic, rounded, magic)
            code = select(rounded < magic_top, rounded, magic_top) - magic
            store(scratch, codes_at + i, code)
            weighted = load(scratch, weights_at + i) * code
            sum_l = sum_l + weighted
            sum_l2 = sum_l2 + weighted * code
            sum_xl = sum_xl + weighted * v
        determinant = sum_w * sum_l2 - sum_l * sum_l
        fitted_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        fitted_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = fitted_minimum > zero
        fitted_minimum = select(positive, zero, fitted_minimum)
        fitted_scale = select(positive, sum_xl / sum_l2, fitted_scale)
        error = zero
        for i in range(0, size, LANES):
            difference = fitted_scale * load(scratch, codes_at + i) + fitted_minimum - load(scratch, i)
            error = error + load(scratch, weights_at + i) * (difference * difference)
        better = (determinant > zero) & (error < best_error)
        best_error = select(better, error, best_error)
        scale = select(better, fitted_scale, scale)
        best_inverse = select(better, inverse, best_inverse)
        measured_from = select(better, minimum, measured_from)
        minimum = select(better, fitted_minimum, minimum)

    store(found, 0, scale)
    store(found, LANES, -minimum)
    store(found, 2 * LANES, best_inverse)
    store(found, 3 * LANES, measured_from)
    if any_lane(~in_range):
        store(scratch, 0, select(in_range, zero, splat(_ONE)))
        for lane in range(LANES):
            if scratch[lane] != _ZERO:
                one = search_one(x, start + lane * SUB_BLOCK, n_codes, first_step, n_steps)
                found[lane] = one[0]
                found[LANES + lane] = one[1]
                found[2 * LANES + lane] = one[2]
                found[3 * LANES + lane] = one[3]
