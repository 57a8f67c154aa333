"""What a quantisation scheme is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.types import BLOCK_LAYOUTS, TensorType

Rows = NDArray[np.float32]
Packed = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A block format with its kernels.

    encode(rows, out): float32 [n, columns] -> uint8 [n, row_bytes(columns)], serial, without the GIL. The bits that
        ggml writes, whatever `rows` holds, NaN and infinities included; `out` is written completely. Whether weights
        that are not finite may be encoded at all is for the caller to decide.
    decode(packed, out): uint8 [n, row_bytes] -> float32 [n, columns], the weights that encoded rows stand for.
    decode_oracle(packed): the same in plain NumPy, slow and obvious: what decode is tested against.
    encode and decode raise ValueError when the arrays do not belong together or are not contiguous.
    block: the structured dtype of one block; its itemsize is the type's block_bytes.
    """

    type: TensorType
    block: np.dtype[Any]
    encode: Callable[[Rows, Packed], None]
    decode: Callable[[Packed, Rows], None]
    decode_oracle: Callable[[Packed], Rows]

    def __post_init__(self) -> None:
        if self.block.itemsize != BLOCK_LAYOUTS[self.type].block_bytes:
            raise ValueError(f"{self.type.name}: block dtype has {self.block.itemsize} bytes")

    def row_bytes(self, columns: int) -> int:
        """Bytes of one encoded row; `columns` must be whole blocks."""
        layout = BLOCK_LAYOUTS[self.type]
        if columns % layout.block_size:
            raise ValueError(f"{self.type.name}: {columns} columns are not whole blocks of {layout.block_size}")
        return columns // layout.block_size * layout.block_bytes
