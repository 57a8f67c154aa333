"""What the readers of older formats share: what they return, and reading a file front to back within its bounds."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.formats.files import open_regular, read_exactly
from llmkit.types import TensorInfo

OlderKind = Literal["pytorch", "paddle", "mxnet", "caffe", "tensorflow"]

# Bytes of an element of the types that occur. SafeTensors' names for them; it has none for complex numbers of 128 bits.
WIDTHS: Final = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8, "C128": 16,
}  # fmt: skip
MAX_DIMENSIONS: Final = 64  # NumPy's limit
MAX_NAME: Final = 512  # characters of a name that is put together, which many tensors may share the most of
_WINDOW: Final = 1 << 16


class Values(Protocol):
    """The values of a tensor that the file does not hold one after the other as they are."""

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """`count` bytes of the values, in C order, from byte `first` on. Raises FormatError."""
        ...


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file of an older format holds, without the weights.

    files: all that belong to it and were read. tensors: in file order; dtypes have SafeTensors' names, and C128.
    values: how to read the tensors, by name, whose bytes in the file are not their values; `offset` of such a tensor
    is where the first of what it is made of begins. notes: what was left out or is to be known.
    """

    kind: OlderKind
    path: Path
    files: tuple[Path, ...]
    tensors: tuple[TensorInfo, ...]
    values: Mapping[str, Values] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Cursor:
    """A place in an open file, which moves on with what is read; nothing beyond `size` is read or allocated."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._file = file
        self._window = b""
        self._begin = 0  # of the window, in the file

    @property
    def left(self) -> int:
        return self.size - self.position

    def take(self, n_bytes: int) -> bytes:
        """The next bytes. Raises FormatError where the file ends before."""
        self._require(n_bytes)
        start = self.position - self._begin
        if start < 0 or start + n_bytes > len(self._window):
            self._file.seek(self.position)
            self._begin, start = self.position, 0
            self._window = read_exactly(self._file, min(max(n_bytes, _WINDOW), self.left), self.path)
        self.position += n_bytes
        return self._window[start : start + n_bytes]

    def skip(self, n_bytes: int) -> int:
        """Go on by `n_bytes`; returns where they begin. Raises FormatError where the file ends before."""
        self._require(n_bytes)
        begin = self.position
        self.position += n_bytes
        return begin

    def number(self, form: str) -> int:
        """A little-endian integer of the form that `struct` calls so, such as "Q"."""
        found: int = struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]
        return found

    def _require(self, n_bytes: int) -> None:
        if not 0 <= n_bytes <= self.left:
            problem = f"{n_bytes:,} bytes are expected at byte {self.position:,}, where {self.left:,} are left"
            raise FormatError(self.path, f"{problem}; the file is truncated or damaged")


@contextmanager
def open_cursor(path: Path) -> Iterator[Cursor]:
    """The beginning of the regular file `path`. Raises FormatError."""
    file, size = open_regular(path)
    with file:
        yield Cursor(file, size, path)


def n_bytes_of(path: Path, name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of the values of a tensor. Raises FormatError for a shape that cannot be."""
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0:
        raise FormatError(path, f"has the shape {_excerpt(shape)}, which cannot be", tensor=name)
    if prod(size or 1 for size in shape) * WIDTHS[dtype] >= 1 << 63:
        raise FormatError(path, f"the size of shape {_excerpt(shape)} overflows 64 bits", tensor=name)
    return prod(shape) * WIDTHS[dtype]


def by_name(path: Path, tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, ...]:
    """The tensors; FormatError if two have the same name."""
    found: dict[str, TensorInfo] = {}
    for tensor in tensors:
        if tensor.name in found:
            raise FormatError(path, "occurs twice; the file is damaged", tensor=tensor.name)
        found[tensor.name] = tensor
    return tuple(found.values())


def read_range(path: Path, name: str, offset: int, count: int) -> NDArray[np.uint8]:
    """`count` bytes of a tensor that lie at `offset`. Raises FormatError."""
    file, size = open_regular(path)
    with file:
        if offset + count > size:
            raise FormatError(path, f"ends {offset + count - size:,} bytes too early; it has changed", tensor=name)
        file.seek(offset)
        return np.frombuffer(read_exactly(file, count, path), np.uint8)


@dataclass(frozen=True, slots=True)
class Range:
    """Values that lie at `offset` as they are. `path` and `name` are for messages."""

    path: Path
    name: str
    offset: int

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """See `Values`."""
        return read_range(self.path, self.name, self.offset + first, count)


@dataclass(frozen=True, slots=True)
class Joined:
    """Values of several parts, in order, each with its number of bytes."""

    parts: tuple[tuple[Values, int], ...]

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """See `Values`."""
        found, begin, end = [], 0, first + count
        for values, n_bytes in self.parts:
            low, high = max(first, begin), min(end, begin + n_bytes)
            if low < high:
                found.append(values.read(low - begin, high - low))
            begin += n_bytes
        return np.concatenate(found) if found else np.empty(0, np.uint8)


def _excerpt(shape: tuple[int, ...]) -> str:
    text = repr(list(shape[:8]))
    return text if len(shape) <= 8 else f"{text[:-1]}, ...]"
