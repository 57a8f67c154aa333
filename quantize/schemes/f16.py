"""F16: every weight as an IEEE binary16 float, rounded to nearest even."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.halffloat import f16_to_f32, f32_to_f16
from llmkit.quantize.schemes.base import Packed, Rows, Scheme
from llmkit.quantize.schemes.flat import as_blocks, flatten
from llmkit.types import TensorType

BLOCK_F16: Final = np.dtype([("weight", "<f2")])


def encode(rows: Rows, out: Packed) -> None:
    """Round rows [n, columns] to out [n, columns * 2]; magnitudes from 65520 on become infinity."""
    weights, packed = flatten(TensorType.F16, rows, out)
    f32_to_f16(weights, packed.view(np.uint16))


def decode(packed: Packed, out: Rows) -> None:
    """The weights that encoded rows stand for."""
    weights, stored = flatten(TensorType.F16, out, packed)
    f16_to_f32(stored.view(np.uint16), weights)


def decode_oracle(packed: Packed) -> Rows:
    """The same in plain NumPy."""
    return as_blocks(TensorType.F16, BLOCK_F16, packed)["weight"].astype(np.float32)


SCHEME: Final = Scheme(TensorType.F16, BLOCK_F16, encode, decode, decode_oracle)
