"""Q2_0: 64 weights as a float16 scale and codes of 2 bits; weight = scale * (code - 1); read only.

Bits 2 (i % 4) and up of byte i // 4 hold the code of weight i. Source: ggml-common.h (block_q2_0) and ggml-quants.c
(dequantize_row_q2_0) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.intlanes import get_u32, lane_numbers, splat_int, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.lanes import LANES, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK_Q2_0: Final = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])
_BYTES: Final = 18
_WEIGHTS: Final = 64


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // _WEIGHTS):
        at, start = block * _BYTES, block * _WEIGHTS
        scale = get_f16(packed, at)
        for i in range(0, _WEIGHTS, LANES):
            codes = splat_int(get_u32(packed, at + 2 + i // 4)) >> (lane_numbers() << 1) & 3
            store(weights, start + i, to_float(codes - 1) * scale)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q2_0, BLOCK_Q2_0, packed)
    codes = blocks["codes"][..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    weights = (codes.astype(np.float32) - np.float32(1)) * blocks["scale"].astype(np.float32)[..., None, None]
    return weights.reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.Q2_0, BLOCK_Q2_0, _decode, decode_oracle)
