"""Q1_0: 128 weights as a float16 scale and one bit each; weight = scale where the bit is set, else -scale; read only.

Bit i % 8 of byte i // 8 belongs to weight i. Source: ggml-common.h (block_q1_0) and ggml-quants.c
(dequantize_row_q1_0) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.codebook import negated_where
from llmkit.kernels.intlanes import get_u16
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.lanes import LANES, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK_Q1_0: Final = np.dtype([("scale", "<f2"), ("bits", "u1", 16)])
_BYTES: Final = 18
_WEIGHTS: Final = 128


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // _WEIGHTS):
        at, start = block * _BYTES, block * _WEIGHTS
        scale = get_f16(packed, at)
        for i in range(0, _WEIGHTS, LANES):
            store(weights, start + i, negated_where(scale, ~get_u16(packed, at + 2 + i // 8)))


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q1_0, BLOCK_Q1_0, packed)
    scales = blocks["scale"].astype(np.float32)[..., None]
    positive = np.unpackbits(blocks["bits"], axis=-1, bitorder="little")
    weights: Rows = np.where(positive, scales, -scales).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.Q1_0, BLOCK_Q1_0, _decode, decode_oracle)
