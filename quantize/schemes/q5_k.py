"""Q5_K: superblocks of 256 weights, eight sub-blocks of 32, w = scale * code - minimum with codes 0..31.

176 bytes: float16 d and dmin, eight 6-bit scales and minimums in 12 bytes (see llmkit.kernels.kquant_scales), 32 bytes
of fifth bits, 128 bytes of low halves. Bit s of byte l of the fifth bits belongs to weight 32 s + l; byte l of the j-th
32 low halves holds weight 64 j + l in its low half and weight 64 j + 32 + l in its high half. Source:
ggml-common.h (block_q5_K) and ggml-quants.c (quantize_row_q5_K_ref) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import types

from llmkit.kernels.jit import kernel, source, target
from llmkit.kernels.kquant_numbers import SUPERBLOCK
from llmkit.kernels.kquant_scales import (
    FOUND,
    GROUP,
    SCRATCH,
    SUB_BLOCKS,
    read_scales,
    round_codes,
    search_superblocks,
    write_scales,
)
from llmkit.quantize.schemes.base import Packed, Rows, Scheme
from llmkit.quantize.schemes.superblocks import flat, superblocks, unpack_scales
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])

_BYTES: Final = BLOCK.itemsize
_FIFTH_BITS: Final = 16
_LOW_HALVES: Final = 48
_TOP_CODE: Final = np.float32(31)
_FIRST_STEP: Final = np.float32(-0.5)
_N_STEPS: Final = 15


@kernel(source(types.float32), target(types.uint8))
def _encode(x, out):
    scratch = np.empty(SCRATCH, np.float32)
    found = np.empty(FOUND, np.float32)
    scales = np.empty(SUB_BLOCKS, np.float32)
    minimums = np.empty(SUB_BLOCKS, np.float32)
    codes = np.empty(SUPERBLOCK, np.uint8)
    n_superblocks = x.size // SUPERBLOCK
    for first in range(0, n_superblocks, GROUP):
        count = min(GROUP, n_superblocks - first)
        search_superblocks(x, first * SUPERBLOCK, count, _TOP_CODE, _FIRST_STEP, _N_STEPS, scratch, found)
        for k in range(count):
            at = (first + k) * _BYTES
            write_scales(found, k * SUB_BLOCKS, out, at)
            read_scales(out, at, scales, minimums)
            round_codes(x, (first + k) * SUPERBLOCK, _TOP_CODE, found, k * SUB_BLOCKS, scales, minimums, codes)
            for i in range(32):
                fifth_bits = np.uint8(0)
                for j in range(SUB_BLOCKS):
                    fifth_bits |= (codes[32 * j + i] >> 4) << j
                out[at + _FIFTH_BITS + i] = fifth_bits
            for j in range(4):
                for i in range(32):
                    low, high = codes[64 * j + i] & 15, codes[64 * j + 32 + i] & 15
                    out[at + _LOW_HALVES + 32 * j + i] = low | (high << 4)


@kernel(source(types.uint8), target(types.float32))
def _decode(packed, out):
    scales = np.empty(SUB_BLOCKS, np.float32)
    minimums = np.empty(SUB_BLOCKS, np.float32)
    for block in range(out.size // SUPERBLOCK):
        at = block * _BYTES
        read_scales(packed, at, scales, minimums)
        for j in range(4):
            for i in range(32):
                fifth_bits = packed[at + _FIFTH_BITS + i] >> (2 * j)
                byte = packed[at + _LOW_HALVES + 32 * j + i]
                low = (byte & 15) | ((fifth_bits & 1) << 4)
                high = (byte >> 4) | ((fifth_bits & 2) << 3)
                to = block * SUPERBLOCK + 64 * j + i
                out[to] = scales[2 * j] * np.float32(low) - minimums[2 * j]
                out[to + 32] = scales[2 * j + 1] * np.float32(high) - minimums[2 * j + 1]


def encode(rows: Rows, out: Packed) -> None:
    """Encode float32 [n, columns] to uint8 [n, columns / 256 * 176]."""
    _encode(*flat(TensorType.Q5_K, rows, out))


def decode(packed: Packed, out: Rows) -> None:
    """Decode uint8 [n, columns / 256 * 176] to float32 [n, columns]."""
    weights, blocks = flat(TensorType.Q5_K, out, packed)
    _decode(blocks, weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = superblocks(packed, BLOCK)
    scales, minimums = unpack_scales(blocks)
    halves = blocks["qs"].reshape(*blocks.shape, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None] & 15
    fifth_bits = blocks["qh"][..., None, :] >> np.arange(SUB_BLOCKS, dtype=np.uint8)[:, None] & 1
    codes = (halves.reshape(*blocks.shape, SUB_BLOCKS, 32) | fifth_bits << 4).astype(np.float32)
    return (scales[..., None] * codes - minimums[..., None]).reshape(packed.shape[0], -1)


SCHEME: Final = Scheme(TensorType.Q5_K, BLOCK, encode, decode, decode_oracle)
