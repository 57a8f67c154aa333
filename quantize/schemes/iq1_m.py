"""IQ1_M: superblocks of 256 weights, groups of eight out of the codebook of IQ1_S, 1.75 bits per weight; read only.

56 bytes: 32 bytes, the low eight bits of each group's number; 16 bytes with a half for each group, the low half first:
its three high bits, and on top whether its shift of 1/8 is down; four half words, each with four 3-bit scales of
sixteen weights and, on top, four bits of the float16 d, its lowest first. w = d * (2 scale + 1) * (value + shift).
Source: ggml-common.h (block_iq1_m) and ggml-quants.c (dequantize_row_iq1_m) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.codebook import CODEBOOK, negated_where, two_entries
from llmkit.kernels.halffloat import f16_values
from llmkit.kernels.intlanes import first_float, get_u16, splat_int, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes import codebooks
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("low", "u1", 32), ("high", "u1", 16), ("scales", "<u2", 4)])

_BYTES: Final = 56
_HIGH: Final = 32
_SCALES: Final = 48
_SHIFT: Final = np.float32(0.125)


@kernel(BYTES_IN, CODEBOOK, FLOATS_OUT)
def _decode_blocks(packed: NDArray[np.uint8], codebook: NDArray[np.int8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        half = 0
        for k in range(4):
            half |= get_u16(packed, at + _SCALES + 2 * k) >> 12 << 4 * k
        d = first_float(f16_values(splat_int(half)))
        for i in range(SUPERBLOCK // LANES):
            scale = get_u16(packed, at + _SCALES + i // 4 * 2) >> i % 4 * 3 & 7
            step = splat(d * np.float32(2 * scale + 1))
            high = packed[at + _HIGH + i]
            first, second = packed[at + 2 * i] | (high & 7) << 8, packed[at + 2 * i + 1] | (high & 112) << 4
            values = to_float(two_entries(codebook, first, second))
            down = (high >> 3 & 1) * 0xFF | (high >> 7) * 0xFF00
            shift = negated_where(splat(_SHIFT), down)
            store(weights, block * SUPERBLOCK + LANES * i, step * (values + shift))


def _decode(packed: Bytes, weights: Floats) -> None:
    _decode_blocks(packed, codebooks.iq1().reshape(-1), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ1_M, BLOCK, packed)
    d = np.bitwise_or.reduce(blocks["scales"] >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=-1)
    scales = blocks["scales"][..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    steps = d.view(np.float16).astype(np.float32)[..., None, None] * (2 * scales + 1).astype(np.float32)
    high = (blocks["high"][..., None] >> np.array([0, 4], np.uint8) & 15).astype(np.uint16)
    values = codebooks.iq1()[blocks["low"].reshape(high.shape) | (high & 7) << 8]
    shifts = np.where(high & 8, -_SHIFT, _SHIFT)
    weights: Rows = (steps.reshape(*blocks.shape, 16, 1, 1) * (values + shifts[..., None])).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.IQ1_M, BLOCK, _decode, decode_oracle)
