"""Q4_1: 32 weights as a float16 scale, a float16 minimum and 32 codes of 4 bits; weight = scale * code + minimum.

Byte i holds the code of weight i in its low half and that of weight i + 16 in its high half. Layout:
ggml-common.h, `block_q4_1`; encoding: ggml-quants.c, `quantize_row_q4_1_ref` and `quantize_row_q4_1_impl`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import BLOCK, HALF_BLOCK, bounds, get_f16, put_f16, reciprocal
from llmkit.kernels.intlanes import load_u8, smaller, splat_int, store_u8, to_float, to_int
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, INT, kernel
from llmkit.kernels.kquant_affine import found_codes, put_bounds
from llmkit.kernels.lanes import load, splat, store
from llmkit.quantize.schemes.affine import encode_blocks
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme, nibbles
from llmkit.types import TensorType

BLOCK_Q4_1: Final = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", 16)])
_BYTES = 20


@kernel(FLOATS_IN, BYTES_OUT)
def _encode(weights: NDArray[np.float32], packed: NDArray[np.uint8]) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * BLOCK, block * _BYTES
        low, high = load(weights, at), load(weights, at + HALF_BLOCK)
        minimum, maximum = bounds(low, high)
        scale = (maximum - minimum) / np.float32(15)
        inverse, base, half = splat(reciprocal(scale)), splat(minimum), splat(np.float32(0.5))
        put_f16(packed, to, scale)
        put_f16(packed, to + 2, minimum)
        low_codes = smaller(to_int((low - base) * inverse + half), splat_int(15))
        high_codes = smaller(to_int((high - base) * inverse + half), splat_int(15))
        store_u8(packed, to + 4, low_codes | (high_codes << 4))


@kernel(FLOATS_IN, INT, INT, FLOATS_IN, BYTES_OUT)
def _pack(
    weights: NDArray[np.float32], start: int, stop: int, found: NDArray[np.float32], packed: NDArray[np.uint8]
) -> None:
    for k in range((stop - start) // BLOCK):
        at, to = start + k * BLOCK, (start // BLOCK + k) * _BYTES
        put_bounds(packed, to, found, k)
        low_codes = found_codes(load(weights, at), found, k, 15)
        high_codes = found_codes(load(weights, at + HALF_BLOCK), found, k, 15)
        store_u8(packed, to + 4, low_codes | (high_codes << 4))


def _encode_weighted(weights: Floats, packed: Bytes, importance: Floats) -> None:
    encode_blocks(weights, packed, importance, 15, _pack)


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * _BYTES, block * BLOCK
        scale, minimum, codes = get_f16(packed, at), get_f16(packed, at + 2), load_u8(packed, at + 4)
        store(weights, to, to_float(codes & 15) * scale + minimum)
        store(weights, to + HALF_BLOCK, to_float(codes >> 4) * scale + minimum)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q4_1, BLOCK_Q4_1, packed)
    codes = nibbles(blocks["codes"])
    weights = codes.astype(np.float32) * blocks["scale"].astype(np.float32)[..., None]
    return (weights + blocks["minimum"].astype(np.float32)[..., None]).reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.Q4_1, BLOCK_Q4_1, _decode, decode_oracle, _encode, _encode_weighted)
