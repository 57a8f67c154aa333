"""BF16: the upper half of every float32 weight, rounded to nearest even."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.halffloat import bf16_to_f32, f32_to_bf16
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK_BF16: Final = np.dtype([("weight", "<u2")])


def _encode(weights: Floats, packed: Bytes) -> None:
    f32_to_bf16(weights, packed.view(np.uint16))


def _decode(packed: Bytes, weights: Floats) -> None:
    bf16_to_f32(packed.view(np.uint16), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    return (as_blocks(TensorType.BF16, BLOCK_BF16, packed)["weight"].astype(np.uint32) << 16).view(np.float32)


SCHEME: Final = flat_scheme(TensorType.BF16, BLOCK_BF16, _decode, decode_oracle, _encode)
