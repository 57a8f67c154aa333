"""MXNet's parameter files, `.params`: lists of arrays, dense or sparse, with or without names.

Format: `NDArray::Save` and `Load` of MXNet 1.9 (src/ndarray/ndarray.cc, include/mxnet/tuple.h). Little-endian: u64
0x112, u64 0; u64 count and the arrays; u64 count and the names, each a u64 length and its bytes. An array begins with
a magic number for its version: before version 1 that word is the number of dimensions, and they are u32; version 1 has
i64 dimensions; version 2 adds the kind of storage, version 3 scalars and NumPy's empty shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.older.base import (
    MAX_DIMENSIONS,
    WIDTHS,
    Cursor,
    TensorFile,
    Values,
    by_name,
    n_bytes_of,
    open_cursor,
    read_range,
)
from llmkit.types import TensorInfo

MAGIC: Final = (0x112).to_bytes(8, "little")
_VERSIONS: Final = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}
# mshadow's type flags.
_DTYPES: Final = {0: "F32", 1: "F64", 2: "F16", 3: "U8", 4: "I32", 5: "I8", 6: "I64", 7: "BOOL", 12: "BF16"}
_DENSE: Final = 0
_ROW_SPARSE: Final = 1
_CSR: Final = 2
_AUXILIARY: Final = {_DENSE: 0, _ROW_SPARSE: 1, _CSR: 2}  # arrays of indices
_INDICES: Final = ("I64", "I32")
_MAX_NAME_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _Array:
    """Where an array lies; None for `values` of a dense one."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    values: _RowSparse | _Csr | None = None


def read_mxnet(path: Path) -> TensorFile:
    """The arrays of a `.params` file by name, `arg:` and `aux:` kept; numbered where the file has no names.

    Sparse arrays are listed as the dense ones they stand for. Raises FormatError for damage, UnsupportedError for
    types that llmkit does not know.
    """
    with open_cursor(path) as cursor:
        if cursor.left < 16 or cursor.take(8) != MAGIC:
            raise FormatError(path, "is no MXNet parameter file: it does not begin with 0x112")
        cursor.take(8)
        count = cursor.number("Q")
        arrays = [_array(cursor, f"number {number}") for number in range(count)]
        names = _names(cursor, count)
    tensors, values, notes = [], {}, []
    for name, array in zip(names, arrays, strict=True):
        if array is None:
            notes.append(f"array {name!r} was never given values and is left out")
            continue
        tensors.append(TensorInfo(name, array.dtype, array.shape, path, array.offset, array.nbytes))
        if array.values is not None:
            values[name] = array.values
            kind = "row-sparse" if isinstance(array.values, _RowSparse) else "CSR"
            notes.append(f"array {name!r} is {kind}; as a dense tensor it takes {array.nbytes:,} bytes")
    found: dict[str, Values] = dict(values)
    return TensorFile("mxnet", path, (path,), by_name(path, tensors), found, tuple(notes))


def _names(cursor: Cursor, count: int) -> list[str]:
    n_names = cursor.number("Q")
    if n_names not in (0, count):
        raise FormatError(cursor.path, f"has {count:,} arrays and {n_names:,} names; the file is damaged")
    names = [f"tensor.{number}" for number in range(count)] if n_names == 0 else []
    for _ in range(n_names):
        length = cursor.number("Q")
        if length > _MAX_NAME_BYTES:
            raise FormatError(cursor.path, f"a name of {length:,} bytes; the file is damaged")
        try:
            names.append(cursor.take(length).decode("utf-8"))
        except UnicodeDecodeError:
            raise FormatError(cursor.path, "a name is not valid UTF-8; the file is damaged") from None
    if cursor.left:
        raise FormatError(cursor.path, f"{cursor.left:,} bytes at the end belong to no array")
    return names


def _array(cursor: Cursor, label: str) -> _Array | None:
    """The array at the cursor; None for one without values."""
    word = cursor.number("I")
    version = _VERSIONS.get(word, 0)
    storage, stored_shape = _DENSE, None
    if version >= 2:
        storage = cursor.number("i")
        if storage not in _AUXILIARY:
            raise FormatError(cursor.path, f"storage of kind {storage}; known are 0 to 2", tensor=label)
        stored_shape = None if storage == _DENSE else _shape(cursor, label) or ()
    shape = (
        tuple(cursor.number("I") for _ in range(_rank(cursor, word, label))) if not version else _shape(cursor, label)
    )
    if shape is None or (not shape and version < 3) or min(shape, default=0) < 0:
        return None
    cursor.take(8)  # the device that it was on
    dtype = _dtype(cursor, label)
    n_bytes = n_bytes_of(cursor.path, label, dtype, shape)
    if stored_shape is None:
        return _Array(dtype, shape, cursor.skip(n_bytes), n_bytes)
    return _sparse(cursor, label, storage, dtype, shape, stored_shape)


def _sparse(
    cursor: Cursor, label: str, storage: int, dtype: str, shape: tuple[int, ...], stored_shape: tuple[int, ...]
) -> _Array:
    path, indices = cursor.path, []
    for _ in range(_AUXILIARY[storage]):
        kind = _dtype(cursor, label)
        if kind not in _INDICES:
            raise FormatError(path, f"has indices of type {kind}; expected I64 or I32", tensor=label)
        found = _shape(cursor, label)
        if found is None or len(found) != 1:
            raise FormatError(path, f"has indices of shape {found}; expected one dimension", tensor=label)
        indices.append((kind, found[0]))
    n_stored = indices[-1][1]
    if storage == _ROW_SPARSE:
        fits = len(shape) > 0 and stored_shape in ((n_stored, *shape[1:]), (0,))
    else:
        # In some versions the shape that is stored is [0], whatever there is.
        fits = len(shape) == 2 and stored_shape in ((n_stored,), (0,)) and indices[0][1] in (0, shape[0] + 1)
    if not fits:
        problem = f"stores {list(stored_shape)} values for {n_stored:,} indices in the shape {list(shape)}"
        raise FormatError(path, f"{problem}; the file is damaged", tensor=label)
    row = prod(shape[1:]) if storage == _ROW_SPARSE else 1
    n_bytes = n_bytes_of(path, label, dtype, shape)
    offset = cursor.skip(n_stored * row * WIDTHS[dtype])
    places = [_Indices(path, label, kind, cursor.skip(size * WIDTHS[kind]), size) for kind, size in indices]
    width = WIDTHS[dtype]
    values = (
        _RowSparse(places[0], offset, row * width, shape[0])
        if storage == _ROW_SPARSE
        else _Csr(places[0], places[1], offset, width, shape[1])
    )
    return _Array(dtype, shape, offset, n_bytes, values)


def _rank(cursor: Cursor, rank: int, label: str) -> int:
    if rank > MAX_DIMENSIONS:
        raise FormatError(
            cursor.path, f"begins with {rank:#x}, neither a version nor a number of dimensions", tensor=label
        )
    return rank


def _shape(cursor: Cursor, label: str) -> tuple[int, ...] | None:
    """Dimensions as i64; None where they are not known."""
    rank = cursor.number("i")
    return None if rank == -1 else tuple(cursor.number("q") for _ in range(_rank(cursor, rank & 0xFFFFFFFF, label)))


def _dtype(cursor: Cursor, label: str) -> str:
    flag = cursor.number("i")
    if flag not in _DTYPES:
        raise UnsupportedError(f"{cursor.path}: tensor {label!r} has type {flag}, which llmkit does not know")
    return _DTYPES[flag]


@dataclass(frozen=True, slots=True)
class _Indices:
    """Indices in the file."""

    path: Path
    label: str
    dtype: str
    offset: int
    size: int

    def read(self, first: int, count: int) -> NDArray[np.int64]:
        """`count` indices from number `first` on, int64 [count]."""
        width = WIDTHS[self.dtype]
        found = read_range(self.path, self.label, self.offset + first * width, count * width)
        return found.view(np.dtype(f"<i{width}")).astype(np.int64)

    def damaged(self) -> FormatError:
        """The error for indices that are not ascending, or lead out of the array."""
        return FormatError(self.path, "has indices out of order or bounds; the file is damaged", tensor=self.label)


@dataclass(frozen=True, slots=True)
class _RowSparse:
    """Rows of `row_bytes` at `offset`, in the order of `rows`, which says which of the `n_rows` each is."""

    rows: _Indices
    offset: int
    row_bytes: int
    n_rows: int

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """See `Values`."""
        if not count or not self.rows.size:  # no row tells how long one may be
            return np.zeros(count, np.uint8)
        low, high = first // self.row_bytes, -(-(first + count) // self.row_bytes)
        found = np.zeros((high - low, self.row_bytes), np.uint8)
        rows = self.rows.read(0, self.rows.size)
        if rows[0] < 0 or rows[-1] >= self.n_rows or (np.diff(rows) <= 0).any():
            raise self.rows.damaged()
        begin, end = np.searchsorted(rows, [low, high]).tolist()
        where = self.offset + begin * self.row_bytes
        stored = read_range(self.rows.path, self.rows.label, where, (end - begin) * self.row_bytes)
        found[rows[begin:end] - low] = stored.reshape(-1, self.row_bytes)
        skipped = first - low * self.row_bytes
        return found.reshape(-1)[skipped : skipped + count]


@dataclass(frozen=True, slots=True)
class _Csr:
    """Values of `width` bytes at `offset`; row i has those from `starts[i]` up to `starts[i + 1]`, in `columns`."""

    starts: _Indices
    columns: _Indices
    offset: int
    width: int
    n_columns: int

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """See `Values`."""
        begin, end = first // self.width, -(-(first + count) // self.width)  # elements
        found = np.zeros(end - begin, f"V{self.width}")
        if count and self.columns.size and self.starts.size:
            self._fill(found, begin, end)
        skipped = first - begin * self.width
        return found.view(np.uint8)[skipped : skipped + count]

    def _fill(self, found: NDArray[np.void], begin: int, end: int) -> None:
        """Put the values of the elements `begin` to `end` to their places."""
        low, high = begin // self.n_columns, -(-end // self.n_columns)
        starts = self.starts.read(low, high - low + 1)
        if starts[0] < 0 or starts[-1] > self.columns.size or (np.diff(starts) < 0).any():
            raise self.starts.damaged()
        first, last = int(starts[0]), int(starts[-1])
        columns = self.columns.read(first, last - first)
        if columns.size and (columns.min() < 0 or columns.max() >= self.n_columns):
            raise self.columns.damaged()
        where = self.offset + first * self.width
        stored = read_range(self.columns.path, self.columns.label, where, (last - first) * self.width)
        places = np.repeat(np.arange(low, high), np.diff(starts)) * self.n_columns + columns - begin
        inside = (places >= 0) & (places < end - begin)
        found[places[inside]] = stored.view(found.dtype)[inside]
