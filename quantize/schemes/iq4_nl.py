"""IQ4_NL: 32 weights as one float16 scale and 32 codes of 4 bits; weight = scale * level of the code.

The sixteen levels are unevenly spaced (see llmkit.kernels.levels). Byte i holds the code of weight i in its low half
and that of weight i + 16 in its high half. Layout: ggml-common.h, `block_iq4_nl`; encoding: ggml-quants.c,
`quantize_iq4_nl`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import BLOCK, get_f16, put_f16, reciprocal
from llmkit.kernels.intlanes import load_u8
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, kernel
from llmkit.kernels.lanes import LANES, store
from llmkit.kernels.levels import LEVELS, find_level_scales, levels_of, write_level_codes
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme, nibbles
from llmkit.types import TensorType

BLOCK_IQ4_NL: Final = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])

_BYTES: Final = 18
_CODES: Final = 2
_NO_IMPORTANCE: Final = np.empty(0, np.float32)


@kernel(FLOATS_IN, FLOATS_IN, BYTES_OUT)
def _pack(weights: NDArray[np.float32], scales: NDArray[np.float32], packed: NDArray[np.uint8]) -> None:
    for block in range(scales.size):
        at = block * _BYTES
        put_f16(packed, at, scales[block])
        write_level_codes(weights, block * BLOCK, reciprocal(scales[block]), packed, at + _CODES)


def _encode(
    weights: NDArray[np.float32], packed: NDArray[np.uint8], importance: NDArray[np.float32] = _NO_IMPORTANCE
) -> None:
    scales = np.empty(weights.size // BLOCK, np.float32)
    find_level_scales(weights, importance, BLOCK, scales)
    _pack(weights, scales, packed)


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * _BYTES, block * BLOCK
        scale, codes = get_f16(packed, at), load_u8(packed, at + _CODES)
        store(weights, to, scale * levels_of(codes))
        store(weights, to + LANES, scale * levels_of(codes >> 4))


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.IQ4_NL, BLOCK_IQ4_NL, packed)
    weights = blocks["scale"].astype(np.float32)[..., None] * LEVELS[nibbles(blocks["codes"])]
    return weights.reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.IQ4_NL, BLOCK_IQ4_NL, _decode, decode_oracle, _encode, _encode)
