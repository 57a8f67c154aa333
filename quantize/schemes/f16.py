"""F16: every weight as an IEEE binary16 float, rounded to nearest even."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.halffloat import f16_to_f32, f32_to_f16
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK_F16: Final = np.dtype([("weight", "<f2")])


def _encode(weights: Floats, packed: Bytes) -> None:
    # Magnitudes from 65520 on become infinity.
    f32_to_f16(weights, packed.view(np.uint16))


def _decode(packed: Bytes, weights: Floats) -> None:
    f16_to_f32(packed.view(np.uint16), weights)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    return as_blocks(TensorType.F16, BLOCK_F16, packed)["weight"].astype(np.float32)


SCHEME: Final = flat_scheme(TensorType.F16, BLOCK_F16, _decode, decode_oracle, _encode)
