"""Q4_0: 32 weights as one float16 scale and 32 codes of 4 bits; weight = scale * (code - 8).

Byte i holds the code of weight i in its low half and that of weight i + 16 in its high half. Layout:
ggml-common.h, `block_q4_0`; encoding: ggml-quants.c, `quantize_row_q4_0_ref` and `quantize_row_q4_0_impl`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.blocks import BLOCK, HALF_BLOCK, get_f16, put_f16, reciprocal, signed_extreme
from llmkit.kernels.intlanes import load_u8, smaller, splat_int, store_u8, to_float, to_int
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, kernel
from llmkit.kernels.lanes import load, splat, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme, nibbles
from llmkit.quantize.schemes.symmetric import search_groups, tiles
from llmkit.types import TensorType

BLOCK_Q4_0: Final = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])
_BYTES = 18


@kernel(FLOATS_IN, BYTES_OUT)
def _encode(weights: Floats, packed: Bytes) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * BLOCK, block * _BYTES
        low, high = load(weights, at), load(weights, at + HALF_BLOCK)
        # The weight of largest magnitude gets code 0 exactly, whichever its sign.
        scale = signed_extreme(low, high) / np.float32(-8)
        inverse, offset = splat(reciprocal(scale)), splat(np.float32(8.5))
        put_f16(packed, to, scale)
        low_codes = smaller(to_int(low * inverse + offset), splat_int(15))
        high_codes = smaller(to_int(high * inverse + offset), splat_int(15))
        store_u8(packed, to + 2, low_codes | (high_codes << 4))


@kernel(FLOATS_IN, BYTES_IN, BYTES_OUT)
def _pack(scales: Floats, codes: Bytes, packed: Bytes) -> None:
    for block in range(scales.size):
        at, to = block * BLOCK, block * _BYTES
        put_f16(packed, to, scales[block])
        store_u8(packed, to + 2, load_u8(codes, at) | load_u8(codes, at + HALF_BLOCK) << 4)


def _encode_weighted(weights: Floats, packed: Bytes, importance: Floats) -> None:
    columns = importance.size
    for part in tiles(weights.size, columns):
        scales, _, codes = search_groups(weights[part], BLOCK, 8, importance, run=columns)
        _pack(scales, codes, packed[part.start // BLOCK * _BYTES : part.stop // BLOCK * _BYTES])


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: Bytes, weights: Floats) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * _BYTES, block * BLOCK
        scale, codes = get_f16(packed, at), load_u8(packed, at + 2)
        store(weights, to, to_float((codes & 15) - 8) * scale)
        store(weights, to + HALF_BLOCK, to_float((codes >> 4) - 8) * scale)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q4_0, BLOCK_Q4_0, packed)
    codes = nibbles(blocks["codes"])
    weights = (codes.astype(np.float32) - np.float32(8)) * blocks["scale"].astype(np.float32)[..., None]
    return weights.reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.Q4_0, BLOCK_Q4_0, _decode, decode_oracle, _encode, _encode_weighted)
