"""IQ2_S: superblocks of 256 weights, groups of eight out of a codebook of 1024, 2.5625 bits per weight; read only.

82 bytes: float16 d; 32 bytes, the low eight bits of each group's number; 32 bytes, the signs of each group; eight bytes
with the two high bits of the numbers, one byte per sub-block of 32 weights, its first group lowest; eight bytes of
scales, two of 4 bits per sub-block, the low one for its first sixteen weights. w = d * (1/2 + scale) / 4 * value with
its sign. Source: ggml-common.h (block_iq2_s) and ggml-quants.c (dequantize_row_iq2_s) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.codebook import CODEBOOK, negated_where, two_entries
from llmkit.kernels.intlanes import first_float, get_u16, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes import codebooks
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("d", "<f2"), ("low", "u1", 32), ("signs", "u1", 32), ("high", "u1", 8), ("scales", "u1", 8)])

_BYTES: Final = 82
_LOW: Final = 2
_SIGNS: Final = 34
_HIGH: Final = 66
_SCALES: Final = 74
_HALF: Final = np.float32(0.5)
_QUARTER: Final = np.float32(0.25)


@kernel(BYTES_IN, CODEBOOK, FLOATS_OUT)
def _decode_blocks(packed: NDArray[np.uint8], codebook: NDArray[np.int8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = first_float(get_f16(packed, at))
        for i in range(SUPERBLOCK // LANES):
            scale = (packed[at + _SCALES + i // 2] >> i % 2 * 4) & 15
            step = splat(d * (_HALF + np.float32(scale)) * _QUARTER)
            high = packed[at + _HIGH + i // 2] >> i % 2 * 4
            first = packed[at + _LOW + 2 * i] | (high & 3) << 8
            second = packed[at + _LOW + 2 * i + 1] | (high & 12) << 6
            values = two_entries(codebook, first, second)
            signs = get_u16(packed, at + _SIGNS + 2 * i)
            store(weights, block * SUPERBLOCK + LANES * i, negated_where(step * to_float(values), signs))


def _decode(packed: Bytes, weights: Floats) -> None:
    _decode_blocks(packed, codebooks.iq2_s().reshape(-1), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ2_S, BLOCK, packed)
    scales = (blocks["scales"][..., None] >> np.array([0, 4], np.uint8) & 15).astype(np.float32)
    steps = blocks["d"].astype(np.float32)[..., None, None] * (_HALF + scales) * _QUARTER
    high = (blocks["high"][..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3).astype(np.uint16)
    values = codebooks.iq2_s()[blocks["low"] | high.reshape(blocks["low"].shape) << 8]
    shape = (*steps.shape, 2, 8)
    signs = codebooks.signs(blocks["signs"]).reshape(shape)
    weights: Rows = (steps[..., None, None] * values.reshape(shape) * signs).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.IQ2_S, BLOCK, _decode, decode_oracle)
