"""Q2_K: superblocks of 256 weights, sixteen sub-blocks of 16, w = scale * code - minimum with codes 0..3.

84 bytes: a byte for each sub-block with its scale in the low and its minimum in the high half, 64 bytes of codes, the
float16 d of the scales and dmin of the minimums. Byte l of the j-th 32 bytes of codes holds those of weights
128 j + l, 128 j + 32 + l, 128 j + 64 + l and 128 j + 96 + l, two bits each, from the lowest on. Source: ggml-common.h
(block_q2_K) and ggml-quants.c (quantize_row_q2_K_ref and _impl) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16, put_f16
from llmkit.kernels.intlanes import first_float, load_u8, store_u8, to_float
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, INT, kernel
from llmkit.kernels.kquant_affine import MAGNITUDE, AffineSearch
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.kquant_scales import ScaleNumbers, round_codes
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes.affine import SuperblockEncoder, weighted_search
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])

_BYTES: Final = 84
_CODES: Final = 16
_D: Final = 80
_DMIN: Final = 82
_SUB_BLOCK: Final = 16
_SUB_BLOCKS: Final = 16
_HIGHEST: Final = 3


@kernel(FLOATS_IN, INT, INT, FLOATS_IN, FLOATS_IN, BYTES_IN, BYTES_OUT)
def _pack(
    weights: NDArray[np.float32],
    start: int,
    stop: int,
    found: NDArray[np.float32],
    factors: NDArray[np.float32],
    numbers: NDArray[np.uint8],
    packed: NDArray[np.uint8],
) -> None:
    scales = np.empty(_SUB_BLOCKS, np.float32)
    minimums = np.empty(_SUB_BLOCKS, np.float32)
    codes = np.empty(SUPERBLOCK, np.uint8)
    for k in range((stop - start) // SUPERBLOCK):
        position, sub_block = start + k * SUPERBLOCK, k * _SUB_BLOCKS
        at = position // SUPERBLOCK * _BYTES
        put_f16(packed, at + _D, factors[k])
        put_f16(packed, at + _DMIN, factors[factors.size // 2 + k])
        d, dmin = first_float(get_f16(packed, at + _D)), first_float(get_f16(packed, at + _DMIN))
        # Negative numbers, which wrapped to large bytes, reach into the other half, as in C.
        both = load_u8(numbers, sub_block) | load_u8(numbers, numbers.size // 2 + sub_block) << 4
        store_u8(packed, at, both)
        store(scales, 0, to_float(both & 15) * splat(d))
        store(minimums, 0, to_float(both >> 4 & 15) * splat(dmin))
        round_codes(weights, position, _SUB_BLOCK, _HIGHEST, found, sub_block, scales, minimums, codes)
        for i in range(0, SUPERBLOCK // 4, LANES):
            first = i + i // 32 * 96
            four = load_u8(codes, first) | load_u8(codes, first + 32) << 2
            four = four | load_u8(codes, first + 64) << 4 | load_u8(codes, first + 96) << 6
            store_u8(packed, at + _CODES + i, four)


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    scales = np.empty(_SUB_BLOCKS, np.float32)
    minimums = np.empty(_SUB_BLOCKS, np.float32)
    for block in range(weights.size // SUPERBLOCK):
        at, start = block * _BYTES, block * SUPERBLOCK
        both = load_u8(packed, at)
        store(scales, 0, to_float(both & 15) * get_f16(packed, at + _D))
        store(minimums, 0, to_float(both >> 4) * get_f16(packed, at + _DMIN))
        for j in range(_SUB_BLOCKS):
            code = load_u8(packed, at + _CODES + j // 8 * 32 + j % 2 * 16) >> j % 8 // 2 * 2 & 3
            store(weights, start + _SUB_BLOCK * j, to_float(code) * splat(scales[j]) - splat(minimums[j]))


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q2_K, BLOCK, packed)
    d, dmin = (blocks[name].astype(np.float32)[..., None] for name in ("d", "dmin"))
    scales = d * (blocks["scales"] & 15).astype(np.float32)
    minimums = dmin * (blocks["scales"] >> 4).astype(np.float32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    codes = blocks["qs"].reshape(*blocks.shape, 2, 1, 32) >> shifts & np.uint8(3)
    codes = codes.reshape(*blocks.shape, _SUB_BLOCKS, _SUB_BLOCK).astype(np.float32)
    return (scales[..., None] * codes - minimums[..., None]).reshape(packed.shape[0], -1)


_ENCODER: Final = SuperblockEncoder(
    plain=AffineSearch(_SUB_BLOCK, _HIGHEST, np.float32(-0.5), np.float32(0.1), 15, MAGNITUDE),
    plain_numbers=ScaleNumbers(_SUB_BLOCKS, 15, 255, False),
    weighted=weighted_search(_SUB_BLOCK, _HIGHEST),
    weighted_numbers=ScaleNumbers(_SUB_BLOCKS, 15, 255, True),
    variance_factor=1,
    pack=_pack,
)

SCHEME: Final = flat_scheme(TensorType.Q2_K, BLOCK, _decode, decode_oracle, _ENCODER.encode, _ENCODER.encode_weighted)
