"""IQ2_XXS: superblocks of 256 weights, groups of eight out of a codebook of 256, 2.0625 bits per weight; read only.

66 bytes: float16 d, then for each of the eight sub-blocks of 32 weights four bytes, each the number of a group, and a
32-bit word: four times seven bits of signs (the eighth sign of a group makes the number of negative ones even), a
4-bit scale on top. w = d * (1/2 + scale) / 4 * value with its sign. Source: ggml-common.h (block_iq2_xxs) and
ggml-quants.c (dequantize_row_iq2_xxs) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.codebook import CODEBOOK, negated_where, two_entries, with_parity
from llmkit.kernels.intlanes import first_float, get_u32, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes import codebooks
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("d", "<f2"), ("sub_blocks", [("entries", "u1", 4), ("signs_and_scale", "<u4")], 8)])

_BYTES: Final = 66
_SUB_BLOCKS: Final = 2
_HALF: Final = np.float32(0.5)
_QUARTER: Final = np.float32(0.25)


@kernel(BYTES_IN, CODEBOOK, FLOATS_OUT)
def _decode_blocks(packed: NDArray[np.uint8], codebook: NDArray[np.int8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = first_float(get_f16(packed, at))
        for j in range(8):
            entries, start = at + _SUB_BLOCKS + 8 * j, block * SUPERBLOCK + 32 * j
            word = get_u32(packed, entries + 4)
            step = splat(d * (_HALF + np.float32((word >> 28) & 15)) * _QUARTER)
            signs = with_parity(word)
            for i in range(2):
                values = two_entries(codebook, packed[entries + 2 * i], packed[entries + 2 * i + 1])
                store(weights, start + LANES * i, negated_where(step * to_float(values), signs >> LANES * i))


def _decode(packed: Bytes, weights: Floats) -> None:
    _decode_blocks(packed, codebooks.iq2_xxs().reshape(-1), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ2_XXS, BLOCK, packed)
    words = blocks["sub_blocks"]["signs_and_scale"]
    steps = blocks["d"].astype(np.float32)[..., None] * (_HALF + (words >> 28).astype(np.float32)) * _QUARTER
    signs = codebooks.signs(codebooks.with_parity(words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127))
    values = codebooks.iq2_xxs()[blocks["sub_blocks"]["entries"]]
    weights: Rows = (steps[..., None, None] * values * signs).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.IQ2_XXS, BLOCK, _decode, decode_oracle)
