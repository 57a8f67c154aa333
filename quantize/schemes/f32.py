"""F32: weights as they are, little-endian."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.quantize.schemes.base import Packed, Rows, Scheme
from llmkit.quantize.schemes.flat import as_blocks, flatten
from llmkit.types import TensorType

BLOCK_F32: Final = np.dtype([("weight", "<f4")])


def encode(rows: Rows, out: Packed) -> None:
    """Copy rows [n, columns] to out [n, columns * 4]."""
    weights, packed = flatten(TensorType.F32, rows, out)
    packed.view(np.float32)[:] = weights


def decode(packed: Packed, out: Rows) -> None:
    """Copy encoded rows back."""
    weights, stored = flatten(TensorType.F32, out, packed)
    weights[:] = stored.view(np.float32)


def decode_oracle(packed: Packed) -> Rows:
    """The same in plain NumPy."""
    return as_blocks(TensorType.F32, BLOCK_F32, packed)["weight"].astype(np.float32)


SCHEME: Final = Scheme(TensorType.F32, BLOCK_F32, encode, decode, decode_oracle)
