"""Q5_0: 32 weights as one float16 scale and 32 codes of 5 bits; weight = scale * (code - 16).

A 32-bit word holds bit 4 of every code, weight i at bit i; then byte i holds the lower four bits for weight i in
its low half and for weight i + 16 in its high half. Layout: ggml-common.h, `block_q5_0`; encoding: ggml-quants.c,
`quantize_row_q5_0_ref` and `quantize_row_q5_0_impl`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.blocks import (
    BLOCK,
    HALF_BLOCK,
    get_f16,
    put_f16,
    put_fifth_bits,
    reciprocal,
    signed_extreme,
    with_fifth_bits,
)
from llmkit.kernels.intlanes import get_u32, load_u8, smaller, splat_int, store_u8, to_float, to_int
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, kernel
from llmkit.kernels.lanes import load, splat, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, fifth_bits, flat_scheme, nibbles
from llmkit.quantize.schemes.symmetric import search_groups, tiles
from llmkit.types import TensorType

BLOCK_Q5_0: Final = np.dtype([("scale", "<f2"), ("high_bits", "u1", 4), ("codes", "u1", 16)])
_BYTES = 22


@kernel(FLOATS_IN, BYTES_OUT)
def _encode(weights: Floats, packed: Bytes) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * BLOCK, block * _BYTES
        low, high = load(weights, at), load(weights, at + HALF_BLOCK)
        # The weight of largest magnitude gets code 0 exactly, whichever its sign.
        scale = signed_extreme(low, high) / np.float32(-16)
        inverse, offset = splat(reciprocal(scale)), splat(np.float32(16.5))
        put_f16(packed, to, scale)
        low_codes = smaller(to_int(low * inverse + offset), splat_int(31))
        high_codes = smaller(to_int(high * inverse + offset), splat_int(31))
        put_fifth_bits(packed, to + 2, low_codes, high_codes)
        store_u8(packed, to + 6, (low_codes & 15) | (high_codes << 4))


@kernel(FLOATS_IN, BYTES_IN, BYTES_OUT)
def _pack(scales: Floats, codes: Bytes, packed: Bytes) -> None:
    for block in range(scales.size):
        at, to = block * BLOCK, block * _BYTES
        put_f16(packed, to, scales[block])
        low_codes, high_codes = load_u8(codes, at), load_u8(codes, at + HALF_BLOCK)
        put_fifth_bits(packed, to + 2, low_codes, high_codes)
        store_u8(packed, to + 6, (low_codes & 15) | high_codes << 4)


def _encode_weighted(weights: Floats, packed: Bytes, importance: Floats) -> None:
    columns = importance.size
    for part in tiles(weights.size, columns):
        scales, _, codes = search_groups(weights[part], BLOCK, 16, importance, run=columns)
        _pack(scales, codes, packed[part.start // BLOCK * _BYTES : part.stop // BLOCK * _BYTES])


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: Bytes, weights: Floats) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * _BYTES, block * BLOCK
        scale, fifth, codes = get_f16(packed, at), get_u32(packed, at + 2), load_u8(packed, at + 6)
        store(weights, to, to_float(with_fifth_bits(codes & 15, fifth) - 16) * scale)
        store(weights, to + HALF_BLOCK, to_float(with_fifth_bits(codes >> 4, fifth >> 16) - 16) * scale)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q5_0, BLOCK_Q5_0, packed)
    codes = nibbles(blocks["codes"]) + fifth_bits(blocks["high_bits"])
    weights = (codes.astype(np.float32) - np.float32(16)) * blocks["scale"].astype(np.float32)[..., None]
    return weights.reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.Q5_0, BLOCK_Q5_0, _decode, decode_oracle, _encode, _encode_weighted)
