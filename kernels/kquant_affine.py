"""Scale and minimum of 32-weight sub-blocks, as ggml's `make_qkx2_quants` finds them.

A sub-block is stored as codes 0..highest with w = scale * code + minimum, minimum <= 0. The search tries the inverse
scales (highest + first + 0.1 * step) / (maximum - minimum) for step = 0 .. last_step: each time it rounds the weights
to codes, fits scale and minimum to the codes by weighted least squares, and keeps the fit if its weighted squared error
is the smallest so far. A kept minimum is the one from which later candidates are measured, so candidates depend on each
other and only sub-blocks are independent: `search_lanes` takes sixteen of them side by side, one per lane, and adds
within each lane in ggml's order.

Source: ggml/src/ggml-quants.c of llama.cpp (make_qkx2_quants, quantize_row_q4_K_ref).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.intlanes import mask_bits
from llmkit.kernels.jit import helper
from llmkit.kernels.kquant_rounding import ROUNDING_MAGIC, nearest_int
from llmkit.kernels.lanes import LANES, absolute, load, select, splat, sqrt, store

SUB_BLOCK: Final = 32
SCRATCH: Final = 3 * SUB_BLOCK * LANES
FOUND: Final = 4 * LANES

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_STEP: Final = np.float32(0.1)
_COUNT: Final = np.float32(SUB_BLOCK)
# Up to here nearest_int is exact, and rounding, clamping and converting can be done in float32.
_ROUNDING_LIMIT: Final = np.float32(4194303.0)


@helper
def search_one(columns: Any, lane: Any, highest: Any, first: Any, last_step: Any) -> Any:
    """The search on one sub-block, weight i at columns[16 * i + lane], operation by operation as in C.

    Returns float32 (scale, -minimum, inverse scale of the codes, minimum the codes were measured from); the last two
    give the codes that the search settled on: nearest_int(inverse_scale * (w - measured_from)).
    """
    weights = np.empty(SUB_BLOCK, np.float32)
    codes = np.empty(SUB_BLOCK, np.float32)
    sum_x2 = _ZERO
    for i in range(SUB_BLOCK):
        sum_x2 += columns[LANES * i + lane] * columns[LANES * i + lane]
    root_mean_square = np.float32(np.sqrt(sum_x2 / _COUNT))
    for i in range(SUB_BLOCK):
        weights[i] = root_mean_square + abs(columns[LANES * i + lane])

    minimum = columns[lane]
    maximum = columns[lane]
    sum_w = weights[0]
    sum_x = sum_w * columns[lane]
    for i in range(1, SUB_BLOCK):
        if columns[LANES * i + lane] < minimum:
            minimum = columns[LANES * i + lane]
        if columns[LANES * i + lane] > maximum:
            maximum = columns[LANES * i + lane]
        sum_w += weights[i]
        sum_x += weights[i] * columns[LANES * i + lane]
    if minimum > _ZERO:
        minimum = _ZERO
    if maximum == minimum:
        return _ZERO, -minimum, _ZERO, minimum

    n_codes = np.float32(highest)
    inverse = n_codes / (maximum - minimum)
    scale = _ONE / inverse
    best_error = _ZERO
    for i in range(SUB_BLOCK):
        code = np.float32(max(0, min(highest, nearest_int(inverse * (columns[LANES * i + lane] - minimum)))))
        difference = scale * code + minimum - columns[LANES * i + lane]
        best_error += weights[i] * (difference * difference)
    best_inverse = inverse
    measured_from = minimum

    for step in range(last_step + 1):
        inverse = (first + _STEP * np.float32(step) + n_codes) / (maximum - minimum)
        sum_l = _ZERO
        sum_l2 = _ZERO
        sum_xl = _ZERO
        for i in range(SUB_BLOCK):
            code = np.float32(max(0, min(highest, nearest_int(inverse * (columns[LANES * i + lane] - minimum)))))
            codes[i] = code
            weighted = weights[i] * code
            sum_l += weighted
            sum_l2 += weighted * code
            sum_xl += weighted * columns[LANES * i + lane]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        if determinant > _ZERO:
            fitted_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            fitted_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            if fitted_minimum > _ZERO:
                fitted_minimum = _ZERO
                fitted_scale = sum_xl / sum_l2
            error = _ZERO
            for i in range(SUB_BLOCK):
                difference = fitted_scale * codes[i] + fitted_minimum - columns[LANES * i + lane]
                error += weights[i] * (difference * difference)
            if error < best_error:
                best_error = error
                scale = fitted_scale
                best_inverse = inverse
                measured_from = minimum
                minimum = fitted_minimum
    return scale, -minimum, best_inverse, measured_from


@helper
def search_lanes(scratch: Any, highest: Any, first: Any, last_step: Any, found: Any) -> None:
    """The search on sixteen sub-blocks.

    `scratch` holds SCRATCH float32, of which the first 512 are the weights: weight i of sub-block `lane` at
    16 * i + lane. `found` takes four groups of sixteen float32: the results of `search_one`. highest and last_step
    are integers, first is float32 (see the module).
    """
    size = SUB_BLOCK * LANES
    weights_at = size
    codes_at = 2 * size
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
    n_codes = np.float32(highest)
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

    for step in range(last_step + 1):
        span = maximum - minimum
        inverse = splat(first + _STEP * np.float32(step) + n_codes) / span
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
    out_of_range = mask_bits(~in_range)
    if out_of_range != 0:
        for lane in range(LANES):
            if (out_of_range >> lane) & 1:
                one = search_one(scratch, lane, highest, first, last_step)
                found[lane] = one[0]
                found[LANES + lane] = one[1]
                found[2 * LANES + lane] = one[2]
                found[3 * LANES + lane] = one[3]
