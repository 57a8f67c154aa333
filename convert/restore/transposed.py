"""Matrices of a GGUF file that checkpoints have transposed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.decoded import DecodedTensor
from llmkit.convert.packed.reader import Reader
from llmkit.types import TensorInfo, TensorType

_AT_ONCE: Final = 1 << 18  # weights decoded at a time


@dataclass(frozen=True, slots=True)
class TransposedTensor:
    """Matrices with rows for columns, a `llmkit.convert.packed.PackedTensor`: columns of several tensors alternate.

    Each of `tensors` holds the same number of matrices, [rows, columns]. Row c of a matrix here is column c of the
    first one's, where column c of the second one's follows each value, and so on: [columns, rows * len(tensors)].
    """

    tensors: tuple[TensorInfo, ...]
    rows: int
    columns: int

    @property
    def name(self) -> str:
        return self.tensors[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        n_matrices = prod(self.tensors[0].shape) // (self.rows * self.columns)
        return n_matrices, self.columns, self.rows * len(self.tensors)

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return self.tensors

    @property
    def rows_together(self) -> int:
        return self.columns  # a stored row holds a value of each

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        found = np.empty((count, self.rows, len(self.tensors)), np.float32)
        done = 0
        while done < count:
            matrix, column = divmod(first + done, self.columns)
            n = min(count - done, self.columns - column)
            for place, tensor in enumerate(self.tensors):
                self._transpose(tensor, matrix, column, found[done : done + n, :, place], reader)
            done += n
        return found.reshape(count, -1)

    def _transpose(
        self, tensor: TensorInfo, matrix: int, column: int, found: NDArray[np.float32], reader: Reader
    ) -> None:
        """Fill `found`, float32 [n, rows], with n columns of a matrix of `tensor` from `column` on."""
        width = tensor.shape[-1]
        together = max(1, width // self.columns)  # a tensor of vectors has all rows of a matrix in one of its own
        # As many at a time as there is memory for anyway, where the caller has little.
        at_once = max(1, min(_AT_ONCE, found.size) // self.columns // together) * together
        for row in range(0, self.rows, at_once):
            n_rows = min(at_once, self.rows - row)
            begin = (matrix * self.rows + row) * self.columns
            stored = DecodedTensor(tensor).read_rows(begin // width, n_rows * self.columns // width, reader)
            found[:, row : row + n_rows] = stored.reshape(n_rows, self.columns)[:, column : column + len(found)].T
