"""IQ2_XS: superblocks of 256 weights, groups of eight out of a codebook of 512, 2.3125 bits per weight; read only.

74 bytes: float16 d; 32 half words, one per group: nine bits its number, then seven of signs (the eighth sign makes the
number of negative ones even); eight bytes of scales, two of 4 bits per sub-block of 32 weights, the low one for its
first sixteen. w = d * (1/2 + scale) / 4 * value with its sign. Source: ggml-common.h (block_iq2_xs) and ggml-quants.c
(dequantize_row_iq2_xs) of llama.cpp.
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

BLOCK: Final = np.dtype([("d", "<f2"), ("groups", "<u2", 32), ("scales", "u1", 8)])

_BYTES: Final = 74
_GROUPS: Final = 2
_SCALES: Final = 66
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
            groups = get_u32(packed, at + _GROUPS + 4 * i)
            signs = with_parity((groups >> 9) & 0x7F | (groups >> 18) & 0x3F80)
            values = two_entries(codebook, groups & 511, (groups >> 16) & 511)
            store(weights, block * SUPERBLOCK + LANES * i, negated_where(step * to_float(values), signs))


def _decode(packed: Bytes, weights: Floats) -> None:
    _decode_blocks(packed, codebooks.iq2_xs().reshape(-1), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ2_XS, BLOCK, packed)
    scales = (blocks["scales"][..., None] >> np.array([0, 4], np.uint8) & 15).astype(np.float32)
    steps = blocks["d"].astype(np.float32)[..., None, None] * (_HALF + scales) * _QUARTER
    signs = codebooks.signs(codebooks.with_parity(blocks["groups"] >> 9))
    values = codebooks.iq2_xs()[blocks["groups"] & 511]
    shape = (*steps.shape, 2, 8)
    weights: Rows = (steps[..., None, None] * values.reshape(shape) * signs.reshape(shape)).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.IQ2_XS, BLOCK, _decode, decode_oracle)
