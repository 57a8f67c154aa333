"""Q4_K: superblocks of 256 weights, eight sub-blocks of 32, w = scale * code - minimum with codes 0..15.

144 bytes: float16 d and dmin, eight 6-bit scales and minimums in 12 bytes (see llmkit.kernels.kquant_scales), then
128 bytes of codes: byte l of the j-th 32 bytes holds weight 64 j + l in its low half and weight 64 j + 32 + l in its
high half. Source: ggml-common.h (block_q4_K) and ggml-quants.c (quantize_row_q4_K_ref and _impl) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.intlanes import load_u8, store_u8, to_float
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, INT, kernel
from llmkit.kernels.kquant_affine import SPREAD, AffineSearch
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.kquant_scales import SUB_BLOCK, SUB_BLOCKS, ScaleNumbers, read_scales, round_codes, write_scales
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes.affine import SuperblockEncoder, weighted_search
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.quantize.schemes.superblocks import unpack_nibbles, unpack_scales
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])

_BYTES: Final = 144
_CODES: Final = 16
_HIGHEST: Final = 15


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
    scales = np.empty(SUB_BLOCKS, np.float32)
    minimums = np.empty(SUB_BLOCKS, np.float32)
    codes = np.empty(SUPERBLOCK, np.uint8)
    for k in range((stop - start) // SUPERBLOCK):
        position, sub_block = start + k * SUPERBLOCK, k * SUB_BLOCKS
        at = position // SUPERBLOCK * _BYTES
        write_scales(factors, k, numbers, sub_block, packed, at)
        read_scales(packed, at, scales, minimums)
        round_codes(weights, position, SUB_BLOCK, _HIGHEST, found, sub_block, scales, minimums, codes)
        for i in range(0, SUPERBLOCK // 2, LANES):
            # Byte 32 j + l takes weights 64 j + l and 64 j + 32 + l.
            low = i + i // 32 * 32
            store_u8(packed, at + _CODES + i, load_u8(codes, low) | load_u8(codes, low + 32) << 4)


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    scales = np.empty(SUB_BLOCKS, np.float32)
    minimums = np.empty(SUB_BLOCKS, np.float32)
    for block in range(weights.size // SUPERBLOCK):
        at, start = block * _BYTES, block * SUPERBLOCK
        read_scales(packed, at, scales, minimums)
        for j in range(SUB_BLOCKS):
            scale, minimum = splat(scales[j]), splat(minimums[j])
            for i in range(0, 32, LANES):
                code = (load_u8(packed, at + _CODES + j // 2 * 32 + i) >> j % 2 * 4) & 15
                store(weights, start + 32 * j + i, to_float(code) * scale - minimum)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q4_K, BLOCK, packed)
    scales, minimums = unpack_scales(blocks)
    codes = unpack_nibbles(blocks).astype(np.float32)
    return (scales[..., None] * codes - minimums[..., None]).reshape(packed.shape[0], -1)


_ENCODER: Final = SuperblockEncoder(
    plain=AffineSearch(SUB_BLOCK, _HIGHEST, np.float32(-1), np.float32(0.1), 20, SPREAD),
    plain_numbers=ScaleNumbers(SUB_BLOCKS, 63, 63, False),
    weighted=weighted_search(SUB_BLOCK, _HIGHEST),
    # ggml bounds the numbers in Q5_K only.
    weighted_numbers=ScaleNumbers(SUB_BLOCKS, 63, 255, True),
    variance_factor=2,
    pack=_pack,
)

SCHEME: Final = flat_scheme(TensorType.Q4_K, BLOCK, _decode, decode_oracle, _ENCODER.encode, _ENCODER.encode_weighted)
