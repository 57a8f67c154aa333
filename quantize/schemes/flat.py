"""From kernels on flat arrays, which check no bounds, to schemes on checked rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.quantize.schemes.base import Importance, Packed, Rows, Scheme
from llmkit.types import BLOCK_LAYOUTS, TensorType

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def flat_scheme(
    type: TensorType,
    block: np.dtype[Any],
    decode: Callable[[Bytes, Floats], None],
    decode_oracle: Callable[[Packed], Rows],
    encode: Callable[[Floats, Bytes], None] | None = None,
    encode_weighted: Callable[[Floats, Bytes, Floats], None] | None = None,
) -> Scheme:
    """The scheme of the kernels decode(packed, weights) and encode(weights, packed), which take flat arrays.

    encode_weighted(weights, packed, importance) takes the importance of each column of a row; its size is the number
    of columns. A type without `encode` is only read; one without `encode_weighted` makes no use of importance.
    """

    def encode_rows(rows: Rows, out: Packed, importance: Importance | None) -> None:
        assert encode is not None
        weights, packed = flatten(type, rows, out)
        if importance is not None:
            _check_importance(type, rows, importance)
        if importance is None or encode_weighted is None:
            encode(weights, packed)
        elif importance.size:
            encode_weighted(weights, packed, importance)

    def decode_rows(packed: Packed, out: Rows) -> None:
        weights, stored = flatten(type, out, packed)
        decode(stored, weights)

    return Scheme(
        type,
        block,
        decode_rows,
        decode_oracle,
        encoder=encode_rows if encode else None,
        uses_importance=encode_weighted is not None,
    )


def _check_importance(type: TensorType, rows: Rows, importance: Importance) -> None:
    if importance.dtype != np.float32 or importance.shape != rows.shape[1:]:
        raise ValueError(
            f"{type.name}: rows of {rows.shape[1]} weights need as many float32 values of importance, not "
            f"{importance.dtype} {importance.shape}"
        )
    if not importance.flags.c_contiguous:
        raise ValueError(f"{type.name}: importance must lie contiguously in memory")


def flatten(type: TensorType, rows: Rows, packed: Packed) -> tuple[Floats, Bytes]:
    """Flat views of weights [n, columns] and of their encoded rows [n, row_bytes].

    Raises ValueError when the arrays do not belong together or are not contiguous.
    """
    layout = BLOCK_LAYOUTS[type]
    if rows.ndim != 2 or packed.ndim != 2 or rows.dtype != np.float32 or packed.dtype != np.uint8:
        raise ValueError(
            f"{type.name}: expected float32 and uint8 matrices, got {rows.dtype} {rows.shape} and "
            f"{packed.dtype} {packed.shape}"
        )
    blocks, rest = divmod(rows.shape[1], layout.block_size)
    if rest or packed.shape != (rows.shape[0], blocks * layout.block_bytes):
        raise ValueError(f"{type.name}: {rows.shape} weights do not encode to {packed.shape} bytes")
    if not (rows.flags.c_contiguous and packed.flags.c_contiguous):
        raise ValueError(f"{type.name}: rows must lie contiguously in memory")
    return rows.reshape(-1), packed.reshape(-1)


def as_blocks(type: TensorType, block: np.dtype[np.void], packed: Packed) -> NDArray[np.void]:
    """Encoded rows [n, row_bytes] as an array [n, blocks] of the structured block dtype."""
    if packed.shape[-1] % block.itemsize:
        raise ValueError(f"{type.name}: {packed.shape[-1]} bytes are not whole blocks of {block.itemsize}")
    return np.ascontiguousarray(packed).view(block)


def nibbles(codes: Bytes) -> Bytes:
    """The 32 codes of 4 bits of blocks of bytes [..., 16]: [..., 32], all low halves before all high halves."""
    return np.concatenate([codes & 15, codes >> 4], axis=-1)


def fifth_bits(words: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """16 where a weight's bit is set in 32-bit words of bytes [..., 4], else 0: [..., 32]; weight i is bit i."""
    return np.unpackbits(words, axis=-1, bitorder="little") << np.uint8(4)
