"""Superblocks of eight 32-weight sub-blocks with 6-bit scales and minimums (Q4_K and Q5_K).

A superblock starts with 16 bytes: the scale and the minimum of the 6-bit numbers (float16 each), then eight scales and
eight minimums of 6 bits in 12 bytes. Bytes 0-3 hold scales 0-3 and bytes 4-7 minimums 0-3 in their low six bits; bytes
8-11 the low four bits of scale and minimum 4-7; the high two bits of those stand on top of bytes 0-7.

Source: ggml/src/ggml-quants.c of llama.cpp (quantize_row_q4_K_ref, get_scale_min_k4).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.blocks import get_f16, put_f16
from llmkit.kernels.intlanes import first_float, store_u8
from llmkit.kernels.jit import helper
from llmkit.kernels.kquant_affine import SUB_BLOCK, search_lanes
from llmkit.kernels.kquant_rounding import SUPERBLOCK, nearest_codes, nearest_int
from llmkit.kernels.lanes import LANES, load, splat, store, transpose

SUB_BLOCKS: Final = SUPERBLOCK // SUB_BLOCK
# The search takes this many superblocks at a time.
GROUP: Final = LANES // SUB_BLOCKS

_ZERO: Final = np.float32(0)
_TOP: Final = np.float32(63)


@helper
def search_superblocks(
    x: Any, start: Any, count: Any, highest: Any, first: Any, last_step: Any, scratch: Any, found: Any
) -> None:
    """Search one or two superblocks x[start : start + 256 * count] into `found` (float32, FOUND long).

    scratch: float32, SCRATCH long.
    """
    if count == GROUP:
        for i in range(0, SUB_BLOCK, LANES):
            transpose(x, start + i, SUB_BLOCK, scratch, i * LANES)
    else:
        # The lanes of the missing superblock are zeros, which the search leaves at once.
        padded = scratch[SUPERBLOCK * GROUP :]
        for i in range(0, SUPERBLOCK, LANES):
            store(padded, i, load(x, start + i))
            store(padded, SUPERBLOCK + i, splat(_ZERO))
        for i in range(0, SUB_BLOCK, LANES):
            transpose(padded, i, SUB_BLOCK, scratch, i * LANES)
    search_lanes(scratch, highest, first, last_step, found)


@helper
def write_scales(found: Any, lane: Any, out: Any, at: Any) -> None:
    """Write the 16 bytes of scales and minimums found for lanes lane..lane+7 to out[at : at + 16]."""
    max_scale = _ZERO
    max_minimum = _ZERO
    for j in range(SUB_BLOCKS):
        if found[lane + j] > max_scale:
            max_scale = found[lane + j]
        if found[LANES + lane + j] > max_minimum:
            max_minimum = found[LANES + lane + j]
    inverse_scale = _TOP / max_scale if max_scale > _ZERO else _ZERO
    inverse_minimum = _TOP / max_minimum if max_minimum > _ZERO else _ZERO
    for j in range(SUB_BLOCKS):
        # A negative scale wraps to a large byte and ends at 63, as in C.
        scale = min(np.uint8(63), np.uint8(nearest_int(inverse_scale * found[lane + j]) & np.int32(255)))
        minimum = min(np.uint8(63), np.uint8(nearest_int(inverse_minimum * found[LANES + lane + j]) & np.int32(255)))
        if j < 4:
            out[at + 4 + j] = scale
            out[at + 8 + j] = minimum
        else:
            out[at + 8 + j] = (scale & 15) | ((minimum & 15) << 4)
            out[at + j] |= (scale >> 4) << 6
            out[at + 4 + j] |= (minimum >> 4) << 6
    put_f16(out, at, max_scale / _TOP)
    put_f16(out, at + 2, max_minimum / _TOP)


@helper
def read_scales(packed: Any, at: Any, scales: Any, minimums: Any) -> None:
    """Read the 16 bytes at packed[at:] into eight float32 scales and eight float32 minimums."""
    d = first_float(get_f16(packed, at))
    dmin = first_float(get_f16(packed, at + 2))
    for j in range(4):
        low, middle, high = packed[at + 4 + j], packed[at + 8 + j], packed[at + 12 + j]
        scales[j] = d * np.float32(low & 63)
        minimums[j] = dmin * np.float32(middle & 63)
        scales[j + 4] = d * np.float32((high & 15) | ((low >> 6) << 4))
        minimums[j + 4] = dmin * np.float32((high >> 4) | ((middle >> 6) << 4))


@helper
def round_codes(
    x: Any, start: Any, highest: Any, found: Any, lane: Any, scales: Any, minimums: Any, codes: Any
) -> None:
    """Round the superblock x[start : start + 256] to bytes `codes` with the scales and minimums as they were stored.

    A sub-block whose stored scale is zero keeps the codes of its search.
    """
    for j in range(SUB_BLOCKS):
        if scales[j] != _ZERO:
            scale, minimum = splat(scales[j]), splat(minimums[j])
            for i in range(SUB_BLOCK * j, SUB_BLOCK * (j + 1), LANES):
                store_u8(codes, i, nearest_codes((load(x, start + i) + minimum) / scale, 0, highest))
        else:
            inverse, measured_from = splat(found[2 * LANES + lane + j]), splat(found[3 * LANES + lane + j])
            for i in range(SUB_BLOCK * j, SUB_BLOCK * (j + 1), LANES):
                store_u8(codes, i, nearest_codes(inverse * (load(x, start + i) - measured_from), 0, highest))
