"""F32: weights as they are, little-endian."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import Bytes, Floats, as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK_F32: Final = np.dtype([("weight", "<f4")])


def _encode(weights: Floats, packed: Bytes) -> None:
    packed.view(np.float32)[:] = weights


def _decode(packed: Bytes, weights: Floats) -> None:
    weights[:] = packed.view(np.float32)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    return as_blocks(TensorType.F32, BLOCK_F32, packed)["weight"].astype(np.float32)


SCHEME: Final = flat_scheme(TensorType.F32, BLOCK_F32, _decode, decode_oracle, _encode)
