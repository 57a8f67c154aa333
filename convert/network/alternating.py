"""Rows of two matrices in turns, which is how ONNX Runtime wants the gates of experts beside what they multiply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.base import PackedTensor
from llmkit.convert.packed.decoded import DecodedTensor
from llmkit.convert.packed.reader import Reader
from llmkit.convert.packed.views import read_view
from llmkit.convert.plan import Stored
from llmkit.quantize.schemes import scheme
from llmkit.types import TensorInfo, TensorType


@dataclass(frozen=True, slots=True)
class AlternatingRows:
    """Rows of `columns` weights, one of each of `parts` in turns, as float32: a `llmkit.convert.packed.PackedTensor`.

    The parts have the same number of rows.
    """

    parts: tuple[Stored, ...]
    columns: int

    @property
    def name(self) -> str:
        return self.parts[0].tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(part.n_elements for part in self.parts) // self.columns, self.columns

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return tuple(dict.fromkeys(info for part in self.parts for info in part.files))

    @property
    def rows_together(self) -> int:
        return 1

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        found = np.empty((count, self.columns), np.float32)
        for place, part in enumerate(self.parts):
            numbers = range(first + (place - first) % len(self.parts), first + count, len(self.parts))
            if numbers:
                rows = self._read(part, numbers[0] // len(self.parts), len(numbers), reader)
                found[numbers[0] - first :: len(self.parts)] = rows
        return found

    def _read(self, part: Stored, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        tensor: PackedTensor = DecodedTensor(part.tensor) if isinstance(part.tensor, TensorInfo) else part.tensor
        rows = part.view.matrix(self.columns)
        read = read_view(tensor, rows, rows.row_starts(first, count), reader)
        if tensor.type is TensorType.F32:
            return read.view(np.float32).reshape(count, self.columns)
        values = np.empty((count, self.columns), np.float32)
        scheme(tensor.type).decode(read.reshape(count, -1), values)
        return values
