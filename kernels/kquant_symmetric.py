"""Signed scales of 16-weight sub-blocks, as ggml's `make_qx_quants` finds them.

A sub-block is stored as w = scale * (code - 32) with codes 0..63. The weight of largest magnitude maps to about -32;
the search tries eighteen other inverse scales around that one and keeps the least-squares scale that explains the most
of the weights' energy, each weight counted by its square. A superblock of 256 has sixteen sub-blocks: one per lane.

Source: ggml/src/ggml-quants.c of llama.cpp (make_qx_quants with rmse_type 1, quantize_row_q6_K_ref).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.jit import helper
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, ROUNDING_MAGIC, SUPERBLOCK
from llmkit.kernels.lanes import LANES, absolute, load, select, splat, store, transpose

SUB_BLOCK: Final = 16
SCRATCH: Final = 3 * SUPERBLOCK
FOUND: Final = 3 * LANES

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_HALF_RANGE: Final = np.float32(32)
_STEP: Final = np.float32(0.1)
_N_STEPS: Final = 9  # on either side
_MAGIC_LOW: Final = ROUNDING_MAGIC - _HALF_RANGE
_MAGIC_HIGH: Final = ROUNDING_MAGIC + _HALF_RANGE - _ONE


@helper
def search_signed_scales(x: Any, start: Any, scratch: Any, found: Any) -> None:
    """Search the sixteen sub-blocks of the superblock x[start : start + 256].

    `scratch` holds SCRATCH float32. `found`, FOUND float32, takes three groups of sixteen: the scales; the inverse
    scales of the codes that the search settled on; 32 to add to those codes. In a sub-block that ggml takes for zeros,
    all three are zero.

    |inverse * w| never exceeds 33 by more than rounding where a sub-block has a scale at all, so that rounding can be
    done in float32; in the other lanes the results are not used.
    """
    weighted_at = SUPERBLOCK
    squares_at = 2 * SUPERBLOCK
    # Weight i of all sub-blocks side by side.
    transpose(x, start, SUB_BLOCK, scratch, 0)

    zero = splat(_ZERO)
    magic = splat(ROUNDING_MAGIC)
    magic_low = splat(_MAGIC_LOW)
    magic_high = splat(_MAGIC_HIGH)
    largest = zero
    extreme = zero
    for i in range(0, SUPERBLOCK, LANES):
        v = load(scratch, i)
        magnitude = absolute(v)
        larger = magnitude > largest
        largest = select(larger, magnitude, largest)
        extreme = select(larger, v, extreme)
        square = v * v
        store(scratch, squares_at + i, square)
        store(scratch, weighted_at + i, square * v)

    scale = zero
    best = zero
    best_inverse = zero
    for step in range(2 * _N_STEPS + 1):
        # ggml starts from the middle and then goes from -9 to 9 without it.
        offset = 0 if step == 0 else step - _N_STEPS - 1 if step <= _N_STEPS else step - _N_STEPS
        inverse = splat(-(_HALF_RANGE + _STEP * np.float32(offset))) / extreme
        sum_lx = zero
        sum_l2 = zero
        for i in range(0, SUPERBLOCK, LANES):
            rounded = inverse * load(scratch, i) + magic
            rounded = select(rounded > magic_low, rounded, magic_low)
            code = select(rounded < magic_high, rounded, magic_high) - magic
            sum_lx = sum_lx + load(scratch, weighted_at + i) * code
            sum_l2 = sum_l2 + load(scratch, squares_at + i) * code * code
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
    store(found, 0, select(zeros, zero, scale))
    store(found, LANES, select(zeros, zero, best_inverse))
    store(found, 2 * LANES, select(zeros, zero, splat(_HALF_RANGE)))
