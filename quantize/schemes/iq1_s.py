"""IQ1_S: superblocks of 256 weights, groups of eight out of a codebook of 2048, 1.5625 bits per weight; read only.

50 bytes: float16 d; 32 bytes, the low eight bits of each group's number; eight half words, one per sub-block of 32
weights: four times the three high bits of a number, a 3-bit scale, and on top whether the shift of 1/8 is down.
w = d * (2 scale + 1) * (value + shift). Source: ggml-common.h (block_iq1_s) and ggml-quants.c (dequantize_row_iq1_s)
of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.codebook import CODEBOOK, two_entries
from llmkit.kernels.intlanes import first_float, get_u16, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes import codebooks
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("d", "<f2"), ("low", "u1", 32), ("sub_blocks", "<u2", 8)])

_BYTES: Final = 50
_LOW: Final = 2
_SUB_BLOCKS: Final = 34
_SHIFT: Final = np.float32(0.125)


@kernel(BYTES_IN, CODEBOOK, FLOATS_OUT)
def _decode_blocks(packed: NDArray[np.uint8], codebook: NDArray[np.int8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = first_float(get_f16(packed, at))
        for j in range(8):
            low, word = at + _LOW + 4 * j, get_u16(packed, at + _SUB_BLOCKS + 2 * j)
            step = splat(d * np.float32((word >> 12 & 7) * 2 + 1))
            shift = splat(-_SHIFT if word & 0x8000 else _SHIFT)
            for i in range(2):
                high = word >> 6 * i
                first, second = packed[low + 2 * i] | (high & 7) << 8, packed[low + 2 * i + 1] | (high & 56) << 5
                values = to_float(two_entries(codebook, first, second))
                store(weights, block * SUPERBLOCK + 32 * j + LANES * i, step * (values + shift))


def _decode(packed: Bytes, weights: Floats) -> None:
    _decode_blocks(packed, codebooks.iq1().reshape(-1), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ1_S, BLOCK, packed)
    words = blocks["sub_blocks"]
    steps = blocks["d"].astype(np.float32)[..., None] * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    shifts = np.where(words & 0x8000, -_SHIFT, _SHIFT)
    high = words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    values = codebooks.iq1()[blocks["low"].reshape(high.shape) | high << 8]
    weights: Rows = (steps[..., None, None] * (values + shifts[..., None, None])).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.IQ1_S, BLOCK, _decode, decode_oracle)
