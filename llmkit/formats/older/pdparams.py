"""PaddlePaddle's pickled state dicts, `.pdparams` and `.pdopt`: dictionaries of NumPy arrays.

Format: `paddle.save` of PaddlePaddle 3.3 (paddle/framework/io.py). A tensor is an array, or within another structure
the pair of its name and an array; bfloat16 is stored as uint16, as which it is taken again. Below protocol 4 an array
of more than 1 GiB is stored in slices, and a dictionary under `UnpackBigParamInfor@@` says which.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.older.base import (
    MAX_NAME,
    Joined,
    Range,
    TensorFile,
    Values,
    n_bytes_of,
    open_cursor,
    read_range,
)
from llmkit.formats.older.pickles import Array, Latin1, Stored, read_pickle
from llmkit.types import TensorInfo

SUFFIXES: Final = (".pdparams", ".pdopt")
# NumPy's codes. Those of two bytes unsigned are Paddle's bfloat16: it has no other type that is stored so.
_DTYPES: Final = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u8": "U64", "u4": "U32",
    "u2": "BF16", "u1": "U8", "b1": "BOOL", "c8": "C64", "c16": "C128",
}  # fmt: skip
_NAMES: Final = "StructuredToParameterName@@"
_SLICES: Final = "UnpackBigParamInfor@@"  # spelt so
_MAX_DEPTH: Final = 16
_SHOWN: Final = 80  # characters of a name in messages
_MAX_WORD: Final = 1 << 16
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor, and how it is read if not as it lies there."""

    info: TensorInfo
    values: Values | None = None

    @property
    def all_values(self) -> Values:
        return self.values or Range(self.info.path, self.info.name, self.info.offset)


def read_pdparams(path: Path) -> TensorFile:
    """The tensors of a pickled state dict by name; within other dictionaries and lists by the way there, with dots.

    Nothing is unpickled (see `llmkit.formats.older.pickles`). What is no tensor is left out with a note. Raises
    FormatError for damage, UnsupportedError for a pickle that asks for code.
    """
    with open_cursor(path) as cursor:
        content = read_pickle(cursor)
    others: list[str] = []
    found: dict[str, _Tensor] = {}
    for name, array in _arrays(path, content, "", set(), others):
        if name in found:
            raise FormatError(path, "occurs twice; the file is damaged", tensor=name)
        if isinstance(array.data, Stored | Latin1) and array.dtype.code in _DTYPES:
            found[name] = _tensor(path, name, array)
        else:
            others.append(name[:_SHOWN])
    _join_slices(path, content, found)
    if not found:
        raise FormatError(path, "holds no tensors")
    tensors = sorted((tensor.info for tensor in found.values()), key=lambda info: info.offset)
    values = {name: tensor.values for name, tensor in found.items() if tensor.values is not None}
    return TensorFile("paddle", path, (path,), tuple(tensors), values, tuple(_notes(tensors, others)))


def _notes(tensors: Sequence[TensorInfo], others: Sequence[str]) -> Iterator[str]:
    bfloat16 = sum(tensor.dtype == "BF16" for tensor in tensors)
    if bfloat16:
        yield f"stored as uint16, which is how PaddlePaddle stores bfloat16, and taken as BF16: {bfloat16:,} tensors"
    if others:
        listed = ", ".join(repr(name) for name in others[:5]) + (", ..." if len(others) > 5 else "")
        yield f"entries that are no tensors of numbers are left out: {listed}"


def _arrays(
    path: Path, value: Any, name: str, seen: set[int], others: list[str], depth: int = 0
) -> Iterator[tuple[str, Array]]:
    """The arrays within a value by name; adds the names of what is none to `others`."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Stored) and isinstance(value[1], Array):
        value = value[1]  # the name that Paddle gave the tensor, and the tensor
    if isinstance(value, Array):
        yield name or "tensor", value
    elif isinstance(value, dict | list | tuple):
        if len(name) > MAX_NAME:
            raise UnsupportedError(f"{path}: entry {name[:80]!r}... has a name of more than {MAX_NAME} characters")
        if depth > _MAX_DEPTH:
            raise UnsupportedError(f"{path}: entry {name[:80]!r} is nested more than {_MAX_DEPTH} deep")
        if id(value) in seen and value:
            raise UnsupportedError(f"{path}: entry {name[:80]!r} is what another entry is, too; save each once")
        seen.add(id(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if depth == 0 and key in (_NAMES, _SLICES):
                continue
            yield from _arrays(path, item, f"{name}.{key}" if name else str(key), seen, others, depth + 1)
    else:
        others.append(name[:_SHOWN])


def _tensor(path: Path, name: str, array: Array) -> _Tensor:
    """Where an array lies, and how it is read if not as it is."""
    dtype, shape, data = _DTYPES[array.dtype.code], array.shape, array.data
    if array.dtype.order == ">":
        raise UnsupportedError(f"{path}: tensor {name!r} is big-endian; save it anew on a little-endian machine")
    n_bytes = n_bytes_of(path, name, dtype, shape)
    stored = data.text if isinstance(data, Latin1) else data
    # A character of Latin-1 takes one or two bytes of UTF-8.
    least, most = (n_bytes, 2 * n_bytes) if isinstance(data, Latin1) else (n_bytes, n_bytes)
    if not least <= stored.size <= most:
        problem = f"{dtype} {list(shape)} takes {n_bytes:,} bytes, but {stored.size:,} are stored"
        raise FormatError(path, f"{problem}; the file is damaged", tensor=name)
    strides = None
    if array.is_fortran and len(shape) > 1 and n_bytes:
        if isinstance(data, Latin1):
            raise UnsupportedError(
                f"{path}: tensor {name!r} is stored column by column, as text; save it with protocol 4"
            )
        strides = tuple(prod(shape[:axis]) for axis in range(len(shape)))
    info = TensorInfo(name, dtype, shape, path, stored.offset, n_bytes, strides)
    return _Tensor(info, _Text(path, name, stored, n_bytes) if isinstance(data, Latin1) and n_bytes else None)


def _join_slices(path: Path, content: Any, found: dict[str, _Tensor]) -> None:
    """Put the tensors that are stored in slices in their places."""
    told = content.get(_SLICES, {}) if isinstance(content, dict) else {}
    for name, how in told.items() if isinstance(told, dict) else ():
        shape, names = (how.get("OriginShape"), how.get("slices")) if isinstance(how, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(shape, tuple | list) or not isinstance(names, list) or not names:
            raise FormatError(path, f"{_SLICES} does not say what the slices of {name!r} are; the file is damaged")
        words = [_word(path, part) for part in names]
        parts = [found.pop(word, None) for word in words]
        if any(part is None for part in parts) or not all(type(size) is int for size in shape) or name in found:
            raise FormatError(path, "its slices are not there; the file is damaged", tensor=name)
        slices = [part for part in parts if part is not None]
        dtype, n_bytes = slices[0].info.dtype, sum(part.info.nbytes for part in slices)
        if n_bytes_of(path, name, dtype, tuple(shape)) != n_bytes or {part.info.dtype for part in slices} != {dtype}:
            raise FormatError(path, f"its slices are not {dtype} {list(shape)}; the file is damaged", tensor=name)
        info = TensorInfo(name, dtype, tuple(shape), path, slices[0].info.offset, n_bytes)
        found[name] = _Tensor(info, Joined(tuple((part.all_values, part.info.nbytes) for part in slices)))


def _word(path: Path, value: Any) -> str:
    if not isinstance(value, Stored) or value.size > _MAX_WORD:
        raise FormatError(path, f"{_SLICES} names no slices; the file is damaged")
    return read_range(path, _SLICES, value.offset, value.size).tobytes().decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Text:
    """Values that are stored as the text of as many characters, in UTF-8."""

    path: Path
    name: str
    stored: Stored
    n_bytes: int

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """See `Values`. All that lies before is read, too: how many bytes it takes depends on the values."""
        found = np.empty(count, np.uint8)
        begin, end = 0, first + count
        for piece in self._pieces():
            low, high = max(first, begin), min(end, begin + len(piece))
            if low < high:
                found[low - first : high - first] = np.frombuffer(piece, np.uint8)[low - begin : high - begin]
            begin += len(piece)
            if begin >= end and end < self.n_bytes:
                break
        if begin < end or (end == self.n_bytes and begin > end):
            problem = f"takes {self.n_bytes:,} bytes, but a text of another length is stored"
            raise FormatError(self.path, f"{problem}; the file is damaged", tensor=self.name)
        return found

    def _pieces(self) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for offset in range(0, self.stored.size, _PIECE):
            size = min(_PIECE, self.stored.size - offset)
            raw = read_range(self.path, self.name, self.stored.offset + offset, size).tobytes()
            try:
                yield decoder.decode(raw, final=offset + size == self.stored.size).encode("latin-1")
            except UnicodeError:
                raise FormatError(self.path, "is stored as a text that is damaged", tensor=self.name) from None
