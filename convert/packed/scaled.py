"""Weights of 8 bits each, floats or integers, times scales: for all of a matrix, for its rows, or for blocks."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed import floats8
from llmkit.convert.packed.base import FLOATS, PackedTensor, require
from llmkit.convert.packed.reader import Reader, to_float32
from llmkit.errors import FormatError
from llmkit.types import TensorInfo, TensorType

# Dtypes of scales; the last two hold exponents of 2.
SCALES: Final = (*FLOATS, "F8_E8M0", "U8")
CODES: Final = (*floats8.DTYPES, "I8")


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """(codes - zeros) * scales / divisor, the codes in rows of shape[-1].

    One scale stands for `block` = (rows, columns); the last ones may be cut off, and blocks begin anew after `period`
    rows. `zeros` has the scales' shape.
    """

    codes: TensorInfo
    scales: TensorInfo
    block: tuple[int, int]
    period: int
    zeros: TensorInfo | None = None
    divisor: float = 1.0

    @property
    def name(self) -> str:
        return self.codes.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return (self.codes, self.scales) if self.zeros is None else (self.codes, self.scales, self.zeros)

    @property
    def rows_together(self) -> int:
        return 1

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        codes = reader.rows(self.codes, first, count)
        if self.codes.dtype == "I8":
            weights = codes.astype(np.float32)
        else:
            weights = np.take(floats8.values_of(self.codes.dtype), codes)
        if self.zeros is not None:
            weights -= self._of_rows(self.zeros, first, count, reader)
        weights *= self._of_rows(self.scales, first, count, reader)
        if self.divisor != 1:
            weights /= np.float32(self.divisor)
        return weights

    def _of_rows(self, tensor: TensorInfo, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        """Scales or zero points of a run of rows, [rows or 1, columns or 1]."""
        n_columns = self.shape[-1]
        high, wide = self.block
        per_matrix, per_row = -(-self.period // high), -(-n_columns // wide)
        matrix, row = np.divmod(np.arange(first, first + count), self.period)
        lines = matrix * per_matrix + row // high
        lowest, highest = int(lines[0]), int(lines[-1])
        values = reader.run(tensor, lowest * per_row, (highest - lowest + 1) * per_row)
        floats = values.astype(np.float32) if tensor.dtype == "I8" else to_float32(tensor, values)
        found = floats.reshape(-1, per_row)[lines - lowest]
        return found if per_row == 1 else np.repeat(found, wide, axis=1)[:, :n_columns]


def scaled(
    codes: TensorInfo,
    scales: TensorInfo,
    *,
    block: tuple[int, int] | None = None,
    zeros: TensorInfo | None = None,
    divisor: float = 1.0,
) -> PackedTensor:
    """Weights with the scales that stand beside them, whose shape tells what each stands for.

    That is all weights, a matrix, a row, or a block: of `block` where the config states it and the shape agrees, else
    of equal parts. Raises FormatError for a shape that says none of these.
    """
    require(codes, *CODES)
    require(scales, *SCALES)
    if zeros is not None:
        require(zeros, "I8", shape=scales.shape)
    if len(codes.shape) < 2:
        raise FormatError(codes.path, f"shape {list(codes.shape)}; 8-bit weights are matrices", tensor=codes.name)
    *lead, n_rows, n_columns = codes.shape
    period, found = n_rows, None
    if len(scales.shape) == len(codes.shape) and list(scales.shape[:-2]) == lead:
        high, wide = (
            _part(n, count, block[axis] if block else None)
            for axis, (n, count) in enumerate(zip(codes.shape[-2:], scales.shape[-2:], strict=True))
        )
        found = (high, wide) if high and wide else None
    elif scales.n_elements == 1:
        period = max(1, prod(codes.shape[:-1]))
        found = (period, n_columns)
    elif list(scales.shape) == [*lead, n_rows]:
        found = (1, n_columns)
    elif list(scales.shape) in (lead, [*lead, 1]):
        found = (n_rows, n_columns)
    if found is None:
        by = f" into blocks of {list(block)}" if block else ""
        raise FormatError(
            scales.path,
            f"shape {list(scales.shape)} does not divide {list(codes.shape)} weights{by}",
            tensor=scales.name,
        )
    return ScaledTensor(codes, scales, found, period, zeros, divisor)


def _part(n: int, count: int, stated: int | None) -> int:
    """How many of `n` places one of `count` scales stands for; 0 if they do not divide."""
    if count == 1:
        return n
    if stated is not None and -(-n // stated) == count:
        return stated
    return n // count if count and n % count == 0 else 0
