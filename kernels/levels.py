"""The sixteen unevenly spaced levels of 4-bit codes, and the search for the scale of blocks of 32 weights.

A block is stored as w = scale * LEVELS[code]. The weight of largest magnitude maps to about the lowest level; the
search tries sixteen inverse scales around that one and keeps the least-squares scale that explains the most of the
weights' energy, each weight counted by its error weight. Sixteen blocks are searched side by side, one per lane, and
added up within each lane in ggml's order.

Source: ggml/src/ggml-quants.c of llama.cpp (best_index_int8, quantize_row_iq4_nl_impl), ggml-common.h (kvalues_iq4nl).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.blocks import BLOCK
from llmkit.kernels.energy import sums_of_squares
from llmkit.kernels.intlanes import bits_of, load_u8, select_int, splat_int, store_u8
from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, ROUNDING_MAGIC
from llmkit.kernels.lanes import LANES, absolute, load, select, splat, sqrt, store, transpose
from llmkit.kernels.lookup import lookup

LEVELS: Final = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# Between two neighbours ggml compares the distances to both, which float32 gives exactly around the midpoint; there,
# it takes the upper one.
MIDPOINTS: Final = (LEVELS[1:] + LEVELS[:-1]) / np.float32(2)

GROUP: Final = LANES  # blocks that are searched side by side
_GROUP_SIZE: Final = GROUP * BLOCK

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_LOWEST: Final = LEVELS[0]
_N_STEPS: Final = 7  # on either side

# A value is first assigned to one of sixteen buckets, so narrow that none has more than two midpoints: 18 * k - 9 to
# 18 * k + 9 belong to the bucket of the low four bits of k. The search maps the weight of largest magnitude to 127 or
# to -134 .. -120, so that all values lie between -134 and 134, which k = -7 .. 7 cover. A bucket is given by the number
# of midpoints below it and by the next two, which may lie beyond it.
_PER_BUCKET: Final = np.float32(1 / 18)
_WHOLE: Final = np.array([b - 16 if b > 7 else b for b in range(16)])
_BELOW: Final = np.array([np.count_nonzero(18 * k - 9.01 > MIDPOINTS) for k in _WHOLE], np.uint8)
_PADDED: Final = np.append(MIDPOINTS, [np.inf, np.inf]).astype(np.float32)
_FIRST: Final = _PADDED[_BELOW]
_SECOND: Final = _PADDED[_BELOW + 1]


@helper
def nearest_level_codes(lanes: Any) -> Any:
    """The code of the level nearest to each float32 lane, as int32 lanes; NaN has the highest, as in ggml."""
    codes = splat_int(0)
    for i in range(15):
        codes = select_int(lanes < splat(MIDPOINTS[i]), codes, splat_int(i + 1))
    return codes


@helper
def levels_of(codes: Any) -> Any:
    """Float32 lanes: the levels of int32 lanes of codes."""
    return lookup(load(LEVELS, 0), codes)


@helper
def nearest_levels(lanes: Any) -> Any:
    """The level nearest to each lane from -134 to 134; some level for other lanes."""
    bucket = bits_of(lanes * splat(_PER_BUCKET) + splat(ROUNDING_MAGIC))
    one, none = splat_int(1), splat_int(0)
    code = lookup(load_u8(_BELOW, 0), bucket)
    code = code + select_int(lanes < lookup(load(_FIRST, 0), bucket), none, one)
    code = code + select_int(lanes < lookup(load(_SECOND, 0), bucket), none, one)
    return levels_of(code)


@helper
def write_level_codes(x: Any, start: Any, inverse: Any, packed: Any, at: Any) -> None:
    """Round the block x[start : start + 32] times `inverse` to levels and write the codes to packed[at : at + 16]."""
    factor = splat(inverse)
    low = nearest_level_codes(factor * load(x, start))
    high = nearest_level_codes(factor * load(x, start + LANES))
    store_u8(packed, at, low | high << 4)


@helper
def _load_columns(x: Any, start: Any, count: Any, columns: Any) -> None:
    """Weight i of block `lane` to columns[16 * i + lane]; blocks from `count` on are zeros."""
    if count == GROUP:
        for i in range(0, BLOCK, LANES):
            transpose(x, start + i, BLOCK, columns, i * LANES)
        return
    padded = columns[2 * _GROUP_SIZE :]
    for i in range(0, _GROUP_SIZE, LANES):
        store(padded, i, load(x, start + i) if i < count * BLOCK else splat(_ZERO))
    for i in range(0, BLOCK, LANES):
        transpose(padded, i, BLOCK, columns, i * LANES)


@helper
def _load_error_weights(start: Any, count: Any, importance: Any, sigma2: Any, columns: Any) -> None:
    """Error weights to columns[512 + 16 * i + lane]: importance * sqrt(sigma2 + w * w).

    Those of blocks from `count` on are whatever was there: nobody looks at these lanes.
    """
    gathered = columns[2 * _GROUP_SIZE :]
    for lane in range(count):
        # The blocks of a group may belong to several rows.
        column = (start + lane * BLOCK) % importance.size
        for i in range(0, BLOCK, LANES):
            store(gathered, lane * BLOCK + i, load(importance, column + i))
    for i in range(0, BLOCK, LANES):
        transpose(gathered, i, BLOCK, columns, _GROUP_SIZE + i * LANES)
    offset = load(sigma2, 0)
    for i in range(0, _GROUP_SIZE, LANES):
        v = load(columns, i)
        store(columns, _GROUP_SIZE + i, load(columns, _GROUP_SIZE + i) * sqrt(offset + v * v))


@helper
def _search(columns: Any) -> Any:
    """The scales, float32 lanes, of sixteen blocks.

    columns: float32: weight i of block `lane` at 16 * i + lane; then, in the same order, the error weights.

    A block with NaN or infinity gets a scale of 0 or NaN whichever levels its weights are given, so that it does not
    matter here that those of NaN are not ggml's.
    """
    zero = splat(_ZERO)
    largest = zero
    extreme = zero
    for i in range(0, _GROUP_SIZE, LANES):
        v = load(columns, i)
        magnitude = absolute(v)
        larger = magnitude > largest
        largest = select(larger, magnitude, largest)
        extreme = select(larger, v, extreme)

    scale = zero
    best = zero
    for step in range(2 * _N_STEPS + 2):
        # ggml first maps the extreme to minus the lowest level, then to about the lowest level.
        if step == 0:
            inverse = splat(_ONE) / (-extreme / splat(_LOWEST))
        else:
            inverse = splat(np.float32(step - 1 - _N_STEPS) + _LOWEST) / extreme
        sum_qx = zero
        sum_q2 = zero
        for i in range(0, _GROUP_SIZE, LANES):
            v = load(columns, i)
            level = nearest_levels(inverse * v)
            weighted = load(columns, _GROUP_SIZE + i) * level
            sum_qx = sum_qx + weighted * v
            sum_q2 = sum_q2 + weighted * level
        fitted = sum_qx / sum_q2
        if step == 0:
            scale = select(sum_q2 > zero, fitted, zero)
            best = scale * sum_qx
        else:
            better = (sum_q2 > zero) & (sum_qx * sum_qx > best * sum_q2)
            scale = select(better, fitted, scale)
            best = select(better, fitted * sum_qx, best)
    return select(largest < splat(GROUP_MAX_EPS), zero, scale)


@kernel(FLOATS_IN, FLOATS_IN, types.int64, FLOATS_OUT)
def find_level_scales(
    weights: NDArray[np.float32], importance: NDArray[np.float32], run: int, scales: NDArray[np.float32]
) -> None:
    """scales[k] = the scale of the k-th 32 weights.

    importance: one value per column of the rows that `weights` consists of: a weight's error counts importance *
        sqrt(2 m + w * w), m being the mean square of the `run` weights it is one of, 32 or 256. Or empty: w * w.
    """
    columns = np.empty(3 * _GROUP_SIZE, np.float32)
    sigma2 = np.empty(GROUP, np.float32)
    sums = np.empty(weights.size // run if importance.size else 0, np.float32)
    sums_of_squares(weights, run, sums)
    group_scales = np.empty(GROUP, np.float32)
    for first in range(0, scales.size, GROUP):
        count = min(GROUP, scales.size - first)
        _load_columns(weights, first * BLOCK, count, columns)
        if importance.size:
            for lane in range(count):
                sigma2[lane] = sums[(first + lane) * BLOCK // run] * (np.float32(2) / np.float32(run))
            _load_error_weights(first * BLOCK, count, importance, sigma2, columns)
        else:
            for i in range(0, _GROUP_SIZE, LANES):
                v = load(columns, i)
                store(columns, _GROUP_SIZE + i, v * v)
        store(group_scales, 0, _search(columns))
        for lane in range(count):
            scales[first + lane] = group_scales[lane]
