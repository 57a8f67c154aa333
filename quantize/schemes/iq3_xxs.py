"""IQ3_XXS: superblocks of 256 weights, groups of four out of a codebook of 256, 3.0625 bits per weight; read only.

98 bytes: float16 d; 64 bytes, the numbers of the groups; eight 32-bit words, one per sub-block of 32 weights: four
times seven bits of signs (the eighth sign of eight weights makes the number of negative ones even), a 4-bit scale on
top. w = d * (1/2 + scale) / 2 * value with its sign. Source: ggml-common.h (block_iq3_xxs) and ggml-quants.c
(dequantize_row_iq3_xxs) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.codebook import CODEBOOK, four_entries, negated_where, with_parity
from llmkit.kernels.intlanes import first_float, get_u32, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes import codebooks
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("d", "<f2"), ("entries", "u1", 64), ("signs_and_scales", "<u4", 8)])

_BYTES: Final = 98
_ENTRIES: Final = 2
_SIGNS: Final = 66
_HALF: Final = np.float32(0.5)


@kernel(BYTES_IN, CODEBOOK, FLOATS_OUT)
def _decode_blocks(packed: NDArray[np.uint8], codebook: NDArray[np.int8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = first_float(get_f16(packed, at))
        for j in range(8):
            word = get_u32(packed, at + _SIGNS + 4 * j)
            step = splat(d * (_HALF + np.float32((word >> 28) & 15)) * _HALF)
            signs = with_parity(word)
            for i in range(2):
                e = at + _ENTRIES + 8 * j + 4 * i
                values = four_entries(codebook, packed[e], packed[e + 1], packed[e + 2], packed[e + 3])
                start = block * SUPERBLOCK + 32 * j + LANES * i
                store(weights, start, negated_where(step * to_float(values), signs >> LANES * i))


def _decode(packed: Bytes, weights: Floats) -> None:
    _decode_blocks(packed, codebooks.iq3_xxs().reshape(-1), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ3_XXS, BLOCK, packed)
    words = blocks["signs_and_scales"]
    steps = blocks["d"].astype(np.float32)[..., None] * (_HALF + (words >> 28).astype(np.float32)) * _HALF
    signs = codebooks.signs(codebooks.with_parity(words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127))
    values = codebooks.iq3_xxs()[blocks["entries"]].reshape(signs.shape)
    weights: Rows = (steps[..., None, None] * values * signs).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.IQ3_XXS, BLOCK, _decode, decode_oracle)
