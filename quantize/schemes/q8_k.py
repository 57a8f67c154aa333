"""Q8_K: superblocks of 256 weights as one float32 scale and 256 signed bytes; weight = d * code; read only.

292 bytes: d, the codes, then sixteen int16 sums of sixteen codes each, which ggml's dot products use and decoding does
not need. ggml keeps activations in this form; it is no type of its quantiser. Source: ggml-common.h (block_q8_K) and
ggml-quants.c (dequantize_row_q8_K) of llama.cpp.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.intlanes import float_from_bits, get_u32, load_i8, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("d", "<f4"), ("codes", "i1", 256), ("sums", "<i2", 16)])

_BYTES: Final = 292
_CODES: Final = 4


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at = block * _BYTES
        d = splat(float_from_bits(get_u32(packed, at)))
        for i in range(0, SUPERBLOCK, LANES):
            store(weights, block * SUPERBLOCK + i, to_float(load_i8(packed, at + _CODES + i)) * d)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.Q8_K, BLOCK, packed)
    weights: Rows = (blocks["d"][..., None] * blocks["codes"].astype(np.float32)).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.Q8_K, BLOCK, _decode, decode_oracle)
