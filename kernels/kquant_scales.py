"""Superblocks of eight 32-weight sub-blocks with 6-bit scales and minimums (Q4_K and Q5_K).

A superblock starts with 16 bytes: the scale and the minimum of the 6-bit numbers (float16 each), then eight scales and
eight minimums of 6 bits in 12 bytes. Bytes 0-3 hold scales 0-3 and bytes 4-7 minimums 0-3 in their low six bits; bytes
8-11 the low four bits of scale and minimum 4-7; the high two bits of those stand on top of bytes 0-7.

Source: ggml/src/ggml-quants.c of llama.cpp (quantize_row_q4_K_ref, get_scale_min_k4).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.jit import helper
from llmkit.kernels.kquant_affine import SUB_BLOCK, search_lanes
from llmkit.kernels.kquant_numbers import SUPERBLOCK, clamp, f16_bits, f16_value, nearest_int
from llmkit.kernels.lanes import LANES

SUB_BLOCKS: Final = SUPERBLOCK // SUB_BLOCK
# The search takes this many superblocks at a time.
GROUP: Final = LANES // SUB_BLOCKS
SCRATCH: Final = 4 * SUB_BLOCK * LANES
FOUND: Final = 4 * LANES

_ZERO: Final = np.float32(0)
_TOP: Final = np.float32(63)


@helper
def search_superblocks(x, start, count, n_codes, first_step, n_steps, scratch, found):
    """Search one or two superblocks x[start : start + 256 * count] into `found` (float32, FOUND long).

    scratch: float32, SCRATCH long.
    """
    if count == GROUP:
        search_lanes(x, start, n_codes, first_step, n_steps, scratch, found)
        return
    padded = scratch[3 * SUB_BLOCK * LANES :]
    for i in range(SUPERBLOCK):
        padded[i] = x[start + i]
    for i in range(SUPERBLOCK, GROUP * SUPERBLOCK):
        padded[i] = _ZERO
    search_lanes(padded, 0, n_codes, first_step, n_steps, scratch, found)


@helper
def write_scales(found, lane, out, at):
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
    d = f16_bits(max_scale / _TOP)
    dmin = f16_bits(max_minimum / _TOP)
    out[at] = d & 255
    out[at + 1] = d >> 8
    out[at + 2] = dmin & 255
    out[at + 3] = dmin >> 8


@helper
def read_scales(packed, at, scales, minimums):
    """Read the 16 bytes at packed[at:] into eight float32 scales and eight float32 minimums."""
    d = f16_value(np.uint32(packed[at]) | (np.uint32(packed[at + 1]) << np.uint32(8)))
    dmin = f16_value(np.uint32(packed[at + 2]) | (np.uint32(packed[at + 3]) << np.uint32(8)))
    for j in range(4):
        low, middle, high = packed[at + 4 + j], packed[at + 8 + j], packed[at + 12 + j]
        scales[j] = d * np.float32(low & 63)
        minimums[j] = dmin * np.float32(middle & 63)
        scales[j + 4] = d * np.float32((high & 15) | ((low >> 6) << 4))
        minimums[j + 4] = dmin * np.float32((high >> 4) | ((middle >> 6) << 4))


@helper
def round_codes(x, start, n_codes, found, lane, scales, minimums, codes):
    """Round the superblock x[start : start + 256] to codes with the scales as they were stored.

    A sub-block whose stored scale is zero keeps the codes of its search.
    """
    top = np.int32(n_codes)
    for j in range(SUB_BLOCKS):
        first = start + SUB_BLOCK * j
        scale = scales[j]
        minimum = minimums[j]
        if scale != _ZERO:
            for i in range(SUB_BLOCK):
                code = nearest_int((x[first + i] + minimum) / scale)
                codes[SUB_BLOCK * j + i] = clamp(code, np.int32(0), top)
        else:
            inverse = found[2 * LANES + lane + j]
            measured_from = found[3 * LANES + lane + j]
            for i in range(SUB_BLOCK):
                code = nearest_int(inverse * (x[first + i] - measured_from))
                codes[SUB_BLOCK * j + i] = clamp(code, np.int32(0), top)
