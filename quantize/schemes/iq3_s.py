"""IQ3_S: superblocks of 256 weights, groups of four out of a codebook of 512, 3.4375 bits per weight; read only.

110 bytes: float16 d; 64 bytes, the low eight bits of each group's number; eight bytes with their ninth bits, one byte
per sub-block of 32 weights, its first group lowest; 32 bytes of signs, bit i of a byte for the i-th of eight weights;
four bytes of scales, one of 4 bits per sub-block, the even ones low. w = d * (1 + 2 scale) * value with its sign.
Source: ggml-common.h (block_iq3_s) and ggml-quants.c (dequantize_row_iq3_s) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.codebook import CODEBOOK, four_entries, negated_where
from llmkit.kernels.intlanes import first_float, get_u16, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes import codebooks
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("d", "<f2"), ("low", "u1", 64), ("high", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)])

_BYTES: Final = 110
_LOW: Final = 2
_HIGH: Final = 66
_SIGNS: Final = 74
_SCALES: Final = 106


@kernel(BYTES_IN, CODEBOOK, FLOATS_OUT)
def _decode_blocks(packed: NDArray[np.uint8], codebook: NDArray[np.int8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = first_float(get_f16(packed, at))
        for i in range(SUPERBLOCK // LANES):
            scale = (packed[at + _SCALES + i // 4] >> i // 2 % 2 * 4) & 15
            step = splat(d * np.float32(1 + 2 * scale))
            low, high = at + _LOW + 4 * i, packed[at + _HIGH + i // 2] >> i % 2 * 4
            values = four_entries(
                codebook,
                packed[low] | (high & 1) << 8,
                packed[low + 1] | (high & 2) << 7,
                packed[low + 2] | (high & 4) << 6,
                packed[low + 3] | (high & 8) << 5,
            )
            signs = get_u16(packed, at + _SIGNS + 2 * i)
            store(weights, block * SUPERBLOCK + LANES * i, negated_where(step * to_float(values), signs))


def _decode(packed: Bytes, weights: Floats) -> None:
    _decode_blocks(packed, codebooks.iq3_s().reshape(-1), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ3_S, BLOCK, packed)
    scales = (blocks["scales"][..., None] >> np.array([0, 4], np.uint8) & 15).reshape(*blocks.shape, 8)
    steps = blocks["d"].astype(np.float32)[..., None] * (1 + 2 * scales).astype(np.float32)
    ninth_bits = np.unpackbits(blocks["high"], axis=-1, bitorder="little").astype(np.uint16)
    values = codebooks.iq3_s()[blocks["low"] | ninth_bits << 8]
    shape = (*steps.shape, 4, 8)
    signs = codebooks.signs(blocks["signs"]).reshape(shape)
    weights: Rows = (steps[..., None, None] * values.reshape(shape) * signs).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.IQ3_S, BLOCK, _decode, decode_oracle)
