"""TQ2_0: superblocks of 256 weights, each -d, 0 or d, two bits per weight; read only.

66 bytes: 64 bytes of codes, float16 d; w = d * (code - 1). Byte l of either 32 holds, from its lowest two bits up, the
codes of weights l, 32 + l, 64 + l and 96 + l of that half of the superblock. Code 3, which no ternary weight has,
decodes to 2 d. Source: ggml-common.h (block_tq2_0) and ggml-quants.c (dequantize_row_tq2_0) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.intlanes import load_u8, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("codes", "u1", 64), ("d", "<f2")])

_BYTES: Final = 66
_D: Final = 64


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = get_f16(packed, at + _D)
        for i in range(0, 64, LANES):
            codes, start = load_u8(packed, at + i), block * SUPERBLOCK + i // 32 * 128 + i % 32
            for j in range(4):
                store(weights, start + 32 * j, to_float((codes >> 2 * j & 3) - 1) * d)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.TQ2_0, BLOCK, packed)
    codes = blocks["codes"].reshape(*blocks.shape, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    weights = (codes.astype(np.float32) - np.float32(1)).reshape(*blocks.shape, 256)
    return (weights * blocks["d"].astype(np.float32)[..., None]).reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.TQ2_0, BLOCK, _decode, decode_oracle)
