"""Q6_K: superblocks of 256 weights, sixteen sub-blocks of 16, w = d * scale * (code - 32) with codes 0..63.

210 bytes: 128 bytes of low halves, 64 bytes of high bit pairs, sixteen int8 scales, float16 d. In each half of the
superblock (128 weights, 64 bytes of low halves, 32 of bit pairs) byte l of the low halves holds weight l in its low
and weight 64 + l in its high half, and byte l of the bit pairs those of weights l, 32 + l, 64 + l and 96 + l from the
lowest pair up. Source: ggml-common.h (block_q6_K) and ggml-quants.c (quantize_row_q6_K_ref, quantize_row_q6_K_impl)
of llama.cpp.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.blocks import get_f16, put_f16
from llmkit.kernels.intlanes import first_float, load_i8, load_u8, store_u8, to_float
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, SUPERBLOCK, nearest_int
from llmkit.kernels.kquant_symmetric import SUB_BLOCK, SUB_BLOCKS, extreme_scale, round_codes
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.quantize.schemes.symmetric import NONE, search_groups, tiles
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

_BYTES: Final = 210
_HIGH_PAIRS: Final = 128
_SCALES: Final = 192
_D: Final = 208
_REACH: Final = 32


@helper
def _write_scales(scales: Any, first: Any, packed: Any, at: Any) -> Any:
    """Write d and the sixteen scales; false, and nothing written, if all weights count as zeros."""
    extreme = extreme_scale(scales, first)
    if abs(extreme) < GROUP_MAX_EPS:
        return False
    to_scale = np.float32(-128) / extreme
    put_f16(packed, at + _D, np.float32(1) / to_scale)
    for j in range(SUB_BLOCKS):
        packed[at + _SCALES + j] = min(127, nearest_int(to_scale * scales[first + j])) & 255
    return True


@kernel(FLOATS_IN, FLOATS_IN, BYTES_OUT, BYTES_OUT)
def _pack(weights: Floats, scales: Floats, codes: Bytes, packed: Bytes) -> None:
    """Round to the scales as they are stored; `codes`, those of the search, are overwritten."""
    steps = np.empty(SUB_BLOCKS, np.float32)
    for block in range(weights.size // SUPERBLOCK):
        start, at = block * SUPERBLOCK, block * _BYTES
        if not _write_scales(scales, block * SUB_BLOCKS, packed, at):
            packed[at : at + _BYTES] = 0
            continue
        store(steps, 0, get_f16(packed, at + _D) * to_float(load_i8(packed, at + _SCALES)))
        round_codes(weights, start, steps, _REACH, codes)
        for half in range(2):
            for i in range(0, 32, LANES):
                first = start + 128 * half + i
                q0, q1, q2, q3 = (
                    load_u8(codes, first),
                    load_u8(codes, first + 32),
                    load_u8(codes, first + 64),
                    load_u8(codes, first + 96),
                )
                store_u8(packed, at + 64 * half + i, (q0 & 15) | (q2 & 15) << 4)
                store_u8(packed, at + 64 * half + 32 + i, (q1 & 15) | (q3 & 15) << 4)
                pairs = (q0 >> 4) | (q1 >> 4) << 2 | (q2 >> 4) << 4 | (q3 >> 4) << 6
                store_u8(packed, at + _HIGH_PAIRS + 32 * half + i, pairs)


def encode_weighted(weights: Floats, packed: Bytes, importance: Floats = NONE) -> None:
    """With no importance, a weight counts its square."""
    for part in tiles(weights.size, importance.size or SUPERBLOCK):
        scales, _, codes = search_groups(weights[part], SUB_BLOCK, _REACH, importance)
        at = part.start // SUPERBLOCK * _BYTES
        _pack(weights[part], scales, codes, packed[at : at + codes.size // SUPERBLOCK * _BYTES])


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: Bytes, weights: Floats) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = first_float(get_f16(packed, at + _D))
        for j in range(SUB_BLOCKS):
            step = splat(d * np.float32(np.int8(packed[at + _SCALES + j])))
            # Eight sub-blocks to a half of the superblock; a pair of them is a quarter of that half.
            half, quarter, odd = j // 8, j // 2 % 4, j % 2
            low = load_u8(packed, at + 64 * half + 32 * (quarter % 2) + LANES * odd) >> quarter // 2 * 4
            high = load_u8(packed, at + _HIGH_PAIRS + 32 * half + LANES * odd) >> 2 * quarter
            code = ((low & 15) | (high & 3) << 4) - 32
            store(weights, block * SUPERBLOCK + LANES * j, to_float(code) * step)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q6_K, BLOCK, packed)
    shape = blocks.shape
    low = blocks["ql"].reshape(*shape, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = blocks["qh"].reshape(*shape, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    codes = (low.reshape(*shape, 16, 16) | high.reshape(*shape, 16, 16) << 4).astype(np.float32) - np.float32(32)
    steps = blocks["d"].astype(np.float32)[..., None] * blocks["scales"].astype(np.float32)
    return (steps[..., None] * codes).reshape(packed.shape[0], -1)


SCHEME: Final = flat_scheme(TensorType.Q6_K, BLOCK, _decode, decode_oracle, encode_weighted, encode_weighted)
