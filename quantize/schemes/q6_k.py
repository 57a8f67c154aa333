"""Q6_K: superblocks of 256 weights, sixteen sub-blocks of 16, w = d * scale * (code - 32) with codes 0..63.

210 bytes: 128 bytes of low halves, 64 bytes of high bit pairs, sixteen int8 scales, float16 d. In each half of the
superblock (128 weights, 64 bytes of low halves, 32 of bit pairs) byte l of the low halves holds weight l in its low
and weight 64 + l in its high half, and byte l of the bit pairs those of weights l, 32 + l, 64 + l and 96 + l from the
lowest pair up. Source: ggml-common.h (block_q6_K) and ggml-quants.c (quantize_row_q6_K_ref) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import types

from llmkit.kernels.jit import helper, kernel, source, target
from llmkit.kernels.kquant_numbers import GROUP_MAX_EPS, SUPERBLOCK, clamp, f16_bits, f16_value, nearest_int
from llmkit.kernels.kquant_symmetric import SCRATCH, SUB_BLOCK, search_signed_scales
from llmkit.kernels.lanes import LANES
from llmkit.quantize.schemes.base import Packed, Rows, Scheme
from llmkit.quantize.schemes.superblocks import flat, superblocks
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

_BYTES: Final = BLOCK.itemsize
_HIGH_PAIRS: Final = 128
_SCALES: Final = 192
_D: Final = 208
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)


@helper
def _encode_superblock(x, start, found, codes, out, at):
    max_scale = _ZERO
    for j in range(LANES):
        if abs(found[j]) > abs(max_scale):
            max_scale = found[j]
    if abs(max_scale) < GROUP_MAX_EPS:
        for i in range(_BYTES):
            out[at + i] = 0
        return

    to_scale = np.float32(-128) / max_scale
    d_bits = f16_bits(_ONE / to_scale)
    out[at + _D] = d_bits & 255
    out[at + _D + 1] = d_bits >> 8
    d = f16_value(d_bits)
    for j in range(LANES):
        scale = np.int8(min(np.int32(127), nearest_int(to_scale * found[j])))
        out[at + _SCALES + j] = scale
        step = d * np.float32(scale)
        first = start + SUB_BLOCK * j
        low, high = np.int32(-32), np.int32(31)
        if step != _ZERO:
            for i in range(SUB_BLOCK):
                codes[SUB_BLOCK * j + i] = clamp(nearest_int(x[first + i] / step), low, high) + np.int32(32)
        elif found[LANES + j] != _ZERO:
            # The stored scale is zero: the codes of the search stay, if it was not a sub-block of zeros.
            for i in range(SUB_BLOCK):
                codes[SUB_BLOCK * j + i] = clamp(nearest_int(found[LANES + j] * x[first + i]), low, high) + np.int32(32)
        else:
            for i in range(SUB_BLOCK):
                codes[SUB_BLOCK * j + i] = 0

    for half in range(2):
        c = codes[128 * half : 128 * half + 128]
        for i in range(32):
            out[at + 64 * half + i] = (c[i] & 15) | ((c[i + 64] & 15) << 4)
            out[at + 64 * half + 32 + i] = (c[i + 32] & 15) | ((c[i + 96] & 15) << 4)
            out[at + _HIGH_PAIRS + 32 * half + i] = (
                (c[i] >> 4) | ((c[i + 32] >> 4) << 2) | ((c[i + 64] >> 4) << 4) | ((c[i + 96] >> 4) << 6)
            )


@kernel(source(types.float32), target(types.uint8))
def _encode(x, out):
    scratch = np.empty(SCRATCH, np.float32)
    found = np.empty(2 * LANES, np.float32)
    codes = np.empty(SUPERBLOCK, np.uint8)
    for block in range(x.size // SUPERBLOCK):
        search_signed_scales(x, block * SUPERBLOCK, scratch, found)
        _encode_superblock(x, block * SUPERBLOCK, found, codes, out, block * _BYTES)


@kernel(source(types.uint8), target(types.float32))
def _decode(packed, out):
    for block in range(out.size // SUPERBLOCK):
        at = block * _BYTES
        d = f16_value(np.uint32(packed[at + _D]) | (np.uint32(packed[at + _D + 1]) << np.uint32(8)))
        for j in range(16):
            step = d * np.float32(np.int8(packed[at + _SCALES + j]))
            # Sub-blocks 0-7 are the first half; within it 4-7 take the high halves of the bytes that 0-3 take.
            half, quarter, odd = j // 8, j // 2 % 4, j % 2
            ql = at + 64 * half + 32 * (quarter % 2) + 16 * odd
            qh = at + _HIGH_PAIRS + 32 * half + 16 * odd
            for i in range(16):
                low = (packed[ql + i] >> (4 * (quarter // 2))) & 15
                high = (packed[qh + i] >> (2 * quarter)) & 3
                code = np.int32(low | (high << 4)) - np.int32(32)
                out[block * SUPERBLOCK + 16 * j + i] = step * np.float32(code)


def encode(rows: Rows, out: Packed) -> None:
    """Encode float32 [n, columns] to uint8 [n, columns / 256 * 210]."""
    _encode(*flat(TensorType.Q6_K, rows, out))


def decode(packed: Packed, out: Rows) -> None:
    """Decode uint8 [n, columns / 256 * 210] to float32 [n, columns]."""
    weights, blocks = flat(TensorType.Q6_K, out, packed)
    _decode(blocks, weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = superblocks(packed, BLOCK)
    shape = blocks.shape
    low = blocks["ql"].reshape(*shape, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = blocks["qh"].reshape(*shape, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low.reshape(*shape, 16, 16) | high.reshape(*shape, 16, 16) << 4).astype(np.float32) - np.float32(32)
    steps = blocks["d"].astype(np.float32)[..., None] * blocks["scales"].astype(np.float32)
    return (steps[..., None] * codes).reshape(packed.shape[0], -1)


SCHEME: Final = Scheme(TensorType.Q6_K, BLOCK, encode, decode, decode_oracle)
