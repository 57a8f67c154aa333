"""Q6_K: superblocks of 256 weights, sixteen sub-blocks of 16, w = d * scale * (code - 32) with codes 0..63.

210 bytes: 128 bytes of low halves, 64 bytes of high bit pairs, sixteen int8 scales, float16 d. In each half of the
superblock (128 weights, 64 bytes of low halves, 32 of bit pairs) byte l of the low halves holds weight l in its low
and weight 64 + l in its high half, and byte l of the bit pairs those of weights l, 32 + l, 64 + l and 96 + l from the
lowest pair up. Source: ggml-common.h (block_q6_K) and ggml-quants.c (quantize_row_q6_K_ref) of llama.cpp.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16, put_f16
from llmkit.kernels.intlanes import first_float, load_u8, store_u8, to_float
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_rounding import GROUP_MAX_EPS, SUPERBLOCK, nearest_codes, nearest_int
from llmkit.kernels.kquant_symmetric import FOUND, SCRATCH, search_signed_scales
from llmkit.kernels.lanes import LANES, load, splat, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])

_BYTES: Final = 210
_HIGH_PAIRS: Final = 128
_SCALES: Final = 192
_D: Final = 208
_SUB_BLOCKS: Final = 16  # of LANES weights each
_ZERO: Final = np.float32(0)


@helper
def _write_scales(found: Any, packed: Any, at: Any) -> Any:
    """Write d and the sixteen scales; false, and nothing written, if all weights count as zeros."""
    max_scale = _ZERO
    for j in range(_SUB_BLOCKS):
        if abs(found[j]) > abs(max_scale):
            max_scale = found[j]
    if abs(max_scale) < GROUP_MAX_EPS:
        return False
    to_scale = np.float32(-128) / max_scale
    put_f16(packed, at + _D, np.float32(1) / to_scale)
    for j in range(_SUB_BLOCKS):
        packed[at + _SCALES + j] = min(127, nearest_int(to_scale * found[j])) & 255
    return True


@helper
def _round_codes(x: Any, start: Any, found: Any, packed: Any, at: Any, codes: Any) -> None:
    """Round the superblock x[start : start + 256] to bytes `codes` with the scales as they were stored."""
    d = first_float(get_f16(packed, at + _D))
    for j in range(_SUB_BLOCKS):
        weights = load(x, start + LANES * j)
        step = d * np.float32(np.int8(packed[at + _SCALES + j]))
        if step != _ZERO:
            code = nearest_codes(weights / splat(step), -32, 31) + 32
        else:
            # The codes of the search stay.
            code = nearest_codes(splat(found[LANES + j]) * weights, -32, 31) + int(found[2 * LANES + j])
        store_u8(codes, LANES * j, code)


@kernel(FLOATS_IN, BYTES_OUT)
def _encode(weights: NDArray[np.float32], packed: NDArray[np.uint8]) -> None:
    scratch = np.empty(SCRATCH, np.float32)
    found = np.empty(FOUND, np.float32)
    codes = np.empty(SUPERBLOCK, np.uint8)
    for block in range(weights.size // SUPERBLOCK):
        start, at = block * SUPERBLOCK, block * _BYTES
        search_signed_scales(weights, start, scratch, found)
        if not _write_scales(found, packed, at):
            packed[at : at + _BYTES] = 0
            continue
        _round_codes(weights, start, found, packed, at, codes)
        for half in range(2):
            for i in range(0, 32, LANES):
                first = 128 * half + i
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


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = first_float(get_f16(packed, at + _D))
        for j in range(_SUB_BLOCKS):
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


SCHEME: Final = flat_scheme(TensorType.Q6_K, BLOCK, _decode, decode_oracle, _encode)
