"""Q8_0: 32 weights as one float16 scale and 32 signed bytes; weight = scale * code.

Layout: ggml-common.h, `block_q8_0`; encoding: ggml-quants.c, `quantize_row_q8_0_ref`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import (
    BLOCK,
    HALF_BLOCK,
    get_f16,
    largest_magnitude,
    put_f16,
    reciprocal,
    rounded,
)
from llmkit.kernels.intlanes import load_i8, store_u8, to_float
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, kernel
from llmkit.kernels.lanes import load, splat, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK_Q8_0: Final = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])
_BYTES = 34


@kernel(FLOATS_IN, BYTES_OUT)
def _encode(weights: NDArray[np.float32], packed: NDArray[np.uint8]) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * BLOCK, block * _BYTES
        low, high = load(weights, at), load(weights, at + HALF_BLOCK)
        scale = largest_magnitude(low, high) / np.float32(127)
        inverse = splat(reciprocal(scale))
        put_f16(packed, to, scale)
        store_u8(packed, to + 2, rounded(low * inverse))
        store_u8(packed, to + 2 + HALF_BLOCK, rounded(high * inverse))


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * _BYTES, block * BLOCK
        scale = get_f16(packed, at)
        store(weights, to, to_float(load_i8(packed, at + 2)) * scale)
        store(weights, to + HALF_BLOCK, to_float(load_i8(packed, at + 2 + HALF_BLOCK)) * scale)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q8_0, BLOCK_Q8_0, packed)
    weights = blocks["codes"].astype(np.float32) * blocks["scale"].astype(np.float32)[..., None]
    return weights.reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.Q8_0, BLOCK_Q8_0, _decode, decode_oracle, _encode)
