"""Reading runs and columns of stored tensors as arrays, for what is put together from several of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.types import TensorInfo

Inputs = Mapping[Path, int]  # open files by path

# How elements of a SafeTensors dtype are read; BF16 and the 8-bit floats as their bits.
_READ_AS: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
        "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "F8_E4M3FNUZ": "u1", "F8_E5M2FNUZ": "u1",
        "U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U16": "<u2", "U32": "<u4", "U64": "<u8",
    }.items()
}  # fmt: skip


def read_at(descriptor: int, buffer: NDArray[np.uint8], source: TensorInfo, offset: int) -> None:
    """Fill `buffer` from `offset` of the open file that holds `source`. Raises FormatError."""
    read_into(descriptor, buffer.data, source, offset)


def read_into(descriptor: int, view: memoryview, source: TensorInfo, offset: int) -> None:
    """The same for bytes that are seen as such: many small pieces then take less time."""
    while view:
        try:
            n = os.preadv(descriptor, [view], offset)
        except OSError as error:
            raise FormatError(source.path, f"cannot be read: {error.strerror}", tensor=source.name) from error
        if n == 0:
            raise FormatError(source.path, f"ends {len(view):,} bytes too early; it has changed", tensor=source.name)
        view = view[n:]
        offset += n


class Reader:
    """Reads stored tensors from open files."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def run(self, tensor: TensorInfo, first: int, count: int) -> NDArray[Any]:
        """`count` elements from number `first` on."""
        kind = _READ_AS[tensor.dtype]
        found = np.empty(count, kind)
        read_at(self._inputs[tensor.path], found.view(np.uint8), tensor, tensor.offset + first * kind.itemsize)
        return found

    def bytes(self, tensor: TensorInfo, first: int, count: int) -> NDArray[np.uint8]:
        """`count` bytes from number `first` on, whatever the tensor's type makes of them."""
        found = np.empty(count, np.uint8)
        read_at(self._inputs[tensor.path], found, tensor, tensor.offset + first)
        return found

    def rows(self, tensor: TensorInfo, first: int, count: int) -> NDArray[Any]:
        """`count` rows along the last axis, from row `first` on, [count, columns]."""
        width = tensor.shape[-1]
        return self.run(tensor, first * width, count * width).reshape(count, width)

    def columns(self, tensor: TensorInfo, first: int, count: int) -> NDArray[Any]:
        """`count` columns of a matrix from column `first` on, [rows, count]."""
        rows, width = tensor.shape
        if count == width:
            return self.rows(tensor, 0, rows)
        kind = _READ_AS[tensor.dtype]
        found = np.empty((rows, count), kind)
        descriptor, step = self._inputs[tensor.path], width * kind.itemsize
        offset = tensor.offset + first * kind.itemsize
        for row, place in enumerate(found.view(np.uint8)):
            read_at(descriptor, place, tensor, offset + row * step)
        return found

    def whole(self, tensor: TensorInfo) -> NDArray[Any]:
        """All elements, in the tensor's shape."""
        return self.run(tensor, 0, tensor.n_elements).reshape(tensor.shape)


@contextmanager
def reading(*tensors: TensorInfo) -> Iterator[Reader]:
    """A reader of small tensors that say how others are stored. Raises FormatError."""
    inputs: dict[Path, int] = {}
    try:
        for path in dict.fromkeys(tensor.path for tensor in tensors):
            try:
                inputs[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise FormatError(path, f"cannot be read: {error.strerror}") from error
        yield Reader(inputs)
    finally:
        for descriptor in inputs.values():
            os.close(descriptor)


def to_float32(tensor: TensorInfo, values: NDArray[Any]) -> NDArray[np.float32]:
    """Elements of `tensor`, a float type of 16 or 32 bits or a power of two (F8_E8M0, or U8 for it), as float32."""
    if tensor.dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if tensor.dtype in ("F8_E8M0", "U8"):
        return np.ldexp(np.float32(1), values.astype(np.int32) - 127)
    return values.astype(np.float32, copy=False)
