"""Tensors of any type as float32, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.base import OneAsFloats
from llmkit.convert.packed.reader import Reader
from llmkit.quantize.schemes import SCHEMES, scheme
from llmkit.types import BLOCK_LAYOUTS, TensorInfo, TensorType


def is_quantized(tensor: TensorInfo) -> bool:
    """Whether values lie in blocks that llmkit decodes."""
    type = TensorType[tensor.dtype]
    return BLOCK_LAYOUTS[type].block_size > 1 and type in SCHEMES


@dataclass(frozen=True, slots=True)
class DecodedTensor(OneAsFloats):
    """A tensor as float32, decoded row by row: a `llmkit.convert.packed.PackedTensor`."""

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        type, columns = TensorType[self.tensor.dtype], self.shape[-1]
        layout = BLOCK_LAYOUTS[type]
        row_bytes = columns // layout.block_size * layout.block_bytes
        values = np.empty((count, columns), np.float32)
        packed = reader.bytes(self.tensor, first * row_bytes, count * row_bytes)
        scheme(type).decode(packed.reshape(count, row_bytes), values)
        return values
