"""What a quantisation scheme is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import UnsupportedError
from llmkit.types import BLOCK_LAYOUTS, TensorType

Rows = NDArray[np.float32]
Packed = NDArray[np.uint8]
Importance = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A block format with its kernels.

    decode(packed, out): uint8 [n, row_bytes] -> float32 [n, columns], the weights that encoded rows stand for.
    decode_oracle(packed): the same in plain NumPy, slow and obvious: what decode is tested against.
    encoder(rows, out, importance): what `encode` calls; None for a type that is read but not written.
    uses_importance: whether an importance matrix changes what is written.
    block: the structured dtype of one block; its itemsize is the type's block_bytes.
    encode and decode run serially, without the GIL; they raise ValueError when the arrays do not belong together or
    are not contiguous.
    """

    type: TensorType
    block: np.dtype[Any]
    decode: Callable[[Packed, Rows], None]
    decode_oracle: Callable[[Packed], Rows]
    encoder: Callable[[Rows, Packed, Importance | None], None] | None = None
    uses_importance: bool = False

    def __post_init__(self) -> None:
        if self.block.itemsize != BLOCK_LAYOUTS[self.type].block_bytes:
            raise ValueError(f"{self.type.name}: block dtype has {self.block.itemsize} bytes")

    def encode(self, rows: Rows, out: Packed, importance: Importance | None = None) -> None:
        """Encode float32 [n, columns] to uint8 [n, row_bytes(columns)], as ggml does: the same bits.

        The bits are ggml's whatever `rows` and `importance` hold, NaN and infinities included; `out` is written
        completely. Whether weights that are not finite may be encoded at all is for the caller to decide.

        importance: float32 [columns], the weight of each column's squared error (llama.cpp's imatrix, see
            `llmkit.quantize.imatrix`), the same for all rows; types that do not use it ignore it, as in ggml.

        Raises UnsupportedError for a type that is read but not written.
        """
        if self.encoder is None:
            raise UnsupportedError(f"{self.type.name} can be read but not written")
        self.encoder(rows, out, importance)

    def row_bytes(self, columns: int) -> int:
        """Bytes of one encoded row; `columns` must be whole blocks."""
        layout = BLOCK_LAYOUTS[self.type]
        if columns % layout.block_size:
            raise ValueError(f"{self.type.name}: {columns} columns are not whole blocks of {layout.block_size}")
        return columns // layout.block_size * layout.block_bytes
