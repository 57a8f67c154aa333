"""Q4_K: superblocks of 256 weights, eight sub-blocks of 32, w = scale * code - minimum with codes 0..15.

144 bytes: float16 d and dmin, eight 6-bit scales and minimums in 12 bytes (see llmkit.kernels.kquant_scales), then
128 bytes of codes: byte l of the j-th 32 bytes holds weight 64 j + l in its low half and weight 64 j + 32 + l in its
high half. Source: ggml-common.h (block_q4_K) and ggml-quants.c (quantize_row_q4_K_ref) of llama.cpp.
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

BLOCK: Final = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])

_BYTES: Final = BLOCK.itemsize
_HEADER: Final = 16
_TOP_CODE: Final = np.float32(15)
_FIRST_STEP: Final = np.float32(-1)
_N_STEPS: Final = 20


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
            for j in range(4):
                for i in range(32):
                    low, high = codes[64 * j + i], codes[64 * j + 32 + i]
                    out[at + _HEADER + 32 * j + i] = np.uint8(low | (high << 4))


@kernel(source(types.uint8), target(types.float32))
def _decode(packed, out):
    scales = np.empty(SUB_BLOCKS, np.float32)
    minimums = np.empty(SUB_BLOCKS, np.float32)
    for block in range(out.size // SUPERBLOCK):
        at = block * _BYTES
        read_scales(packed, at, scales, minimums)
        for j in range(4):
            for i in range(32):
                byte = packed[at + _HEADER + 32 * j + i]
                to = block * SUPERBLOCK + 64 * j + i
                out[to] = scales[2 * j] * np.float32(byte & 15) - minimums[2 * j]
                out[to + 32] = scales[2 * j + 1] * np.float32(byte >> 4) - minimums[2 * j + 1]


def encode(rows: Rows, out: Packed) -> None:
    """Encode float32 [n, columns] to uint8 [n, columns / 256 * 144]."""
    _encode(*flat(TensorType.Q4_K, rows, out))


def decode(packed: Packed, out: Rows) -> None:
    """Decode uint8 [n, columns / 256 * 144] to float32 [n, columns]."""
    weights, blocks = flat(TensorType.Q4_K, out, packed)
    _decode(blocks, weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = superblocks(packed, BLOCK)
    scales, minimums = unpack_scales(blocks)
    halves = blocks["qs"].reshape(*blocks.shape, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None] & 15
    codes = halves.reshape(*blocks.shape, SUB_BLOCKS, 32).astype(np.float32)
    return (scales[..., None] * codes - minimums[..., None]).reshape(packed.shape[0], -1)


SCHEME: Final = Scheme(TensorType.Q4_K, BLOCK, encode, decode, decode_oracle)
