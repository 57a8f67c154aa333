"""Q3_K: superblocks of 256 weights, sixteen sub-blocks of 16, w = d * scale * (code - 4) with codes 0..7.

110 bytes: 32 bytes of high bits, 64 bytes of low bit pairs, 12 bytes of scales, float16 d. Bit k of byte l of the high
bits belongs to weight 32 k + l. In each half of the superblock (128 weights, 32 bytes of pairs) byte l holds the low
bits of weights l, 32 + l, 64 + l and 96 + l from the lowest pair up. Scales are stored as numbers 0..63 for -32..31:
the low four bits of scales j and j + 8 in byte j, the high two of scales j, j + 4, j + 8 and j + 12 in byte 8 + j from
the lowest pair up. Source: ggml-common.h (block_q3_K) and ggml-quants.c (quantize_row_q3_K_ref,
quantize_row_q3_K_impl, dequantize_row_q3_K) of llama.cpp.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.blocks import get_f16, put_f16
from llmkit.kernels.intlanes import load_u8, store_u8, to_float
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_descent import descend
from llmkit.kernels.kquant_rounding import SUPERBLOCK, nearest_codes
from llmkit.kernels.kquant_symmetric import SUB_BLOCK, SUB_BLOCKS, extreme_scale, round_codes
from llmkit.kernels.lanes import LANES, load, splat, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.quantize.schemes.symmetric import search_groups, tiles
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])

_BYTES: Final = 110
_PAIRS: Final = 32
_SCALES: Final = 96
_D: Final = 108
_REACH: Final = 4
_SCALE_REACH: Final = 32


@kernel(FLOATS_IN, FLOATS_OUT, BYTES_OUT)
def _number_scales(scales: Floats, ds: Floats, numbers: Bytes) -> None:
    """d of each superblock and the numbers of its scales, of which that of largest magnitude gets 0, for -32."""
    for block in range(ds.size):
        at = block * SUB_BLOCKS
        extreme = extreme_scale(scales, at)
        if extreme == np.float32(0):
            ds[block] = 0
            numbers[at : at + SUB_BLOCKS] = 0
            continue
        to_number = np.float32(-_SCALE_REACH) / extreme
        ds[block] = np.float32(1) / to_number
        number = nearest_codes(splat(to_number) * load(scales, at), -_SCALE_REACH, _SCALE_REACH - 1) + _SCALE_REACH
        store_u8(numbers, at, number)


@helper
def _write_scales(numbers: Any, first: Any, packed: Any, at: Any) -> None:
    """The twelve bytes of sixteen 6-bit numbers."""
    for j in range(8):
        packed[at + j] = (numbers[first + j] & 15) | (numbers[first + 8 + j] & 15) << 4
    for j in range(4):
        pairs = 0
        for quarter in range(4):
            pairs |= (numbers[first + 4 * quarter + j] >> 4) << 2 * quarter
        packed[at + 8 + j] = pairs


@helper
def _read_scales(packed: Any, at: Any, numbers: Any) -> None:
    """The sixteen numbers of twelve bytes."""
    for j in range(8):
        numbers[j] = packed[at + j] & 15
        numbers[8 + j] = packed[at + j] >> 4
    for j in range(4):
        for quarter in range(4):
            numbers[4 * quarter + j] |= (packed[at + 8 + j] >> 2 * quarter & 3) << 4


@kernel(FLOATS_IN, FLOATS_IN, BYTES_IN, BYTES_OUT, BYTES_OUT)
def _pack(weights: Floats, ds: Floats, numbers: Bytes, codes: Bytes, packed: Bytes) -> None:
    """Round to the scales as they are stored; `codes`, those of the search, are overwritten."""
    steps = np.empty(SUB_BLOCKS, np.float32)
    for block in range(ds.size):
        start, at, first = block * SUPERBLOCK, block * _BYTES, block * SUB_BLOCKS
        put_f16(packed, at + _D, ds[block])
        _write_scales(numbers, first, packed, at + _SCALES)
        store(steps, 0, get_f16(packed, at + _D) * to_float(load_u8(numbers, first) - _SCALE_REACH))
        round_codes(weights, start, steps, _REACH, codes)
        for i in range(0, 32, LANES):
            high = load_u8(codes, start + i) >> 2
            for k in range(1, 8):
                high = high | load_u8(codes, start + 32 * k + i) >> 2 << k
            store_u8(packed, at + i, high)
            for half in range(2):
                pairs = load_u8(codes, start + 128 * half + i) & 3
                for k in range(1, 4):
                    pairs = pairs | (load_u8(codes, start + 128 * half + 32 * k + i) & 3) << 2 * k
                store_u8(packed, at + _PAIRS + 32 * half + i, pairs)


def _bytes_of(part: slice) -> slice:
    return slice(part.start // SUPERBLOCK * _BYTES, part.stop // SUPERBLOCK * _BYTES)


def _encode(weights: Floats, packed: Bytes) -> None:
    for part in tiles(weights.size):
        n_scales, tile = (part.stop - part.start) // SUB_BLOCK, weights[part]
        scales, codes = np.empty(n_scales, np.float32), np.empty(tile.size, np.uint8)
        ds, numbers = np.empty(n_scales // SUB_BLOCKS, np.float32), np.empty(n_scales, np.uint8)
        descend(tile, scales, codes)
        _number_scales(scales, ds, numbers)
        _pack(tile, ds, numbers, codes, packed[_bytes_of(part)])


def _encode_weighted(weights: Floats, packed: Bytes, importance: Floats) -> None:
    for part in tiles(weights.size, importance.size):
        tile = weights[part]
        scales, masses, codes = search_groups(tile, SUB_BLOCK, _REACH, importance, run=SUPERBLOCK, factor=2)
        # The scales are weights of a second search, in which each counts what its sub-block does.
        ds, _, numbers = search_groups(scales, SUB_BLOCKS, _SCALE_REACH, masses)
        _pack(tile, ds, numbers, codes, packed[_bytes_of(part)])


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: Bytes, weights: Floats) -> None:
    numbers = np.empty(SUB_BLOCKS, np.uint8)
    steps = np.empty(SUB_BLOCKS, np.float32)
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        _read_scales(packed, at + _SCALES, numbers)
        store(steps, 0, get_f16(packed, at + _D) * to_float(load_u8(numbers, 0) - _SCALE_REACH))
        for j in range(SUB_BLOCKS):
            # Eight sub-blocks to a half of the superblock; a pair of them is a quarter of that half.
            half, quarter, odd = j // 8, j // 2 % 4, j % 2
            low = load_u8(packed, at + _PAIRS + 32 * half + LANES * odd) >> 2 * quarter & 3
            high = load_u8(packed, at + LANES * odd) >> 4 * half + quarter & 1
            code = (low | high << 2) - _REACH
            store(weights, block * SUPERBLOCK + LANES * j, to_float(code) * splat(steps[j]))


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q3_K, BLOCK, packed)
    shape = blocks.shape
    pairs = blocks["qs"].reshape(*shape, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    high = blocks["hmask"].reshape(*shape, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = (pairs.reshape(*shape, 16, 16) | high.reshape(*shape, 16, 16) << 2).astype(np.float32) - np.float32(4)
    nibbles = blocks["scales"][..., None, :8] >> np.array([[0], [4]], np.uint8) & 15
    scale_pairs = blocks["scales"][..., None, 8:] >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    numbers = nibbles.reshape(*shape, 16) | scale_pairs.reshape(*shape, 16) << 4
    steps = blocks["d"].astype(np.float32)[..., None] * (numbers.astype(np.float32) - np.float32(32))
    weights: Rows = (steps[..., None] * codes).reshape(packed.shape[0], -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.Q3_K, BLOCK, _decode, decode_oracle, _encode, _encode_weighted)
