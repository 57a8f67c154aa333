"""IQ4_XS: superblocks of 256 weights, eight sub-blocks of 32, w = d * (scale - 32) * level of the code.

The sixteen levels are unevenly spaced (see llmkit.kernels.levels). 136 bytes: float16 d; the high two bits of the eight
6-bit scales, sub-block j's at bits 2 j of a 16-bit word; their low halves in four bytes, two to a byte; 128 bytes of
codes, 16 for each sub-block, whose byte i holds the code of weight i in its low half and that of weight i + 16 in its
high half. Layout: ggml-common.h, `block_iq4_xs`; encoding: ggml-quants.c, `quantize_iq4_xs`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import BLOCK, get_f16, put_f16, reciprocal
from llmkit.kernels.intlanes import first_float, get_u16, load_u8, put_u16
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK, nearest_int
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.kernels.levels import LEVELS, find_level_scales, levels_of, write_level_codes
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme, nibbles
from llmkit.types import TensorType

BLOCK_IQ4_XS: Final = np.dtype([("d", "<f2"), ("scales_high", "<u2"), ("scales_low", "u1", 4), ("codes", "u1", 128)])

_BYTES: Final = 136
_SCALES_HIGH: Final = 2
_SCALES_LOW: Final = 4
_CODES: Final = 8
_SUB_BLOCKS: Final = SUPERBLOCK // BLOCK
_NO_IMPORTANCE: Final = np.empty(0, np.float32)
_ZERO: Final = np.float32(0)


@kernel(FLOATS_IN, FLOATS_IN, BYTES_OUT)
def _pack(weights: NDArray[np.float32], scales: NDArray[np.float32], packed: NDArray[np.uint8]) -> None:
    for superblock in range(weights.size // SUPERBLOCK):
        at, start, first = superblock * _BYTES, superblock * SUPERBLOCK, superblock * _SUB_BLOCKS
        extreme = _ZERO
        for j in range(_SUB_BLOCKS):
            if abs(scales[first + j]) > abs(extreme):
                extreme = scales[first + j]
        d = -extreme / np.float32(32)
        inverse = reciprocal(d)
        put_f16(packed, at, d)
        high = np.int32(0)
        for j in range(_SUB_BLOCKS):
            scale = max(-32, min(31, nearest_int(inverse * scales[first + j])))
            step = d * np.float32(scale)
            write_level_codes(weights, start + j * BLOCK, reciprocal(step), packed, at + _CODES + j * BLOCK // 2)
            stored = np.int32(scale + 32)
            if j % 2 == 0:
                packed[at + _SCALES_LOW + j // 2] = stored & 15
            else:
                packed[at + _SCALES_LOW + j // 2] |= (stored & 15) << 4
            high |= (stored >> 4) << 2 * j
        put_u16(packed, at + _SCALES_HIGH, np.int32(high))


def _encode(
    weights: NDArray[np.float32], packed: NDArray[np.uint8], importance: NDArray[np.float32] = _NO_IMPORTANCE
) -> None:
    scales = np.empty(weights.size // BLOCK, np.float32)
    find_level_scales(weights, importance, SUPERBLOCK, scales)
    _pack(weights, scales, packed)


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for superblock in range(weights.size // SUPERBLOCK):
        at, start = superblock * _BYTES, superblock * SUPERBLOCK
        d = first_float(get_f16(packed, at))
        high = get_u16(packed, at + _SCALES_HIGH)
        for j in range(_SUB_BLOCKS):
            low = packed[at + _SCALES_LOW + j // 2] >> 4 * (j % 2) & 15
            scale = np.int32(low | (high >> 2 * j & 3) << 4) - 32
            step = splat(d * np.float32(scale))
            codes = load_u8(packed, at + _CODES + j * BLOCK // 2)
            store(weights, start + j * BLOCK, step * levels_of(codes))
            store(weights, start + j * BLOCK + LANES, step * levels_of(codes >> 4))


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ4_XS, BLOCK_IQ4_XS, packed)
    numbers = np.arange(_SUB_BLOCKS)
    low = blocks["scales_low"][..., numbers // 2] >> numbers % 2 * 4 & 15
    high = blocks["scales_high"][..., None] >> 2 * numbers & 3
    steps = blocks["d"].astype(np.float32)[..., None] * ((low | high << 4) - 32).astype(np.float32)
    codes = nibbles(blocks["codes"].reshape(*blocks.shape, _SUB_BLOCKS, BLOCK // 2))
    return (steps[..., None] * LEVELS[codes]).reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.IQ4_XS, BLOCK_IQ4_XS, _decode, decode_oracle, _encode, _encode)
