"""BF16: the upper half of every float32 weight, rounded to nearest even."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.halffloat import bf16_to_f32, f32_to_bf16
from llmkit.quantize.schemes.base import Packed, Rows, Scheme
from llmkit.quantize.schemes.flat import as_blocks, flatten
from llmkit.types import TensorType

BLOCK_BF16: Final = np.dtype([("weight", "<u2")])


def encode(rows: Rows, out: Packed) -> None:
    """Round rows [n, columns] to out [n, columns * 2]."""
    weights, packed = flatten(TensorType.BF16, rows, out)
    f32_to_bf16(weights, packed.view(np.uint16))


def decode(packed: Packed, out: Rows) -> None:
    """The weights that encoded rows stand for."""
    weights, stored = flatten(TensorType.BF16, out, packed)
    bf16_to_f32(stored.view(np.uint16), weights)


def decode_oracle(packed: Packed) -> Rows:
    """The same in plain NumPy."""
    return (as_blocks(TensorType.BF16, BLOCK_BF16, packed)["weight"].astype(np.uint32) << 16).view(np.float32)


SCHEME: Final = Scheme(TensorType.BF16, BLOCK_BF16, encode, decode, decode_oracle)
