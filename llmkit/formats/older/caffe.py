"""Caffe's models, `.caffemodel`: the blobs of each layer.

Format: `NetParameter` of caffe.proto, in protobuf's wire format: layers in field 100, or in field 2 as they were before
2014 (with the first kind within the second). A blob has its shape in field 7, or as num, channels, height and width in
fields 1 to 4, and its values in field 5 (float) or 8 (double); NVIDIA's and OpenCV's versions add field 12, bytes of
the type that field 10 says. The file is read field by field, since it may be large: messages are stepped into, not
copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.older.base import (
    MAX_NAME,
    Cursor,
    Joined,
    Range,
    TensorFile,
    Values,
    by_name,
    n_bytes_of,
    open_cursor,
)
from llmkit.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT
from llmkit.types import TensorInfo

_HDF5: Final = b"\x89HDF\r\n"
_LAYER: Final = 100
_OLD_LAYER: Final = 2
_OLDEST_LAYER: Final = 1  # within an old one
_SHAPE: Final = 7
_RAW_TYPE: Final = 10
_RAW_TYPES: Final = {0: "F64", 1: "F32", 2: "F16"}
_DATA: Final = {5: "F32", 8: "F64", 12: "raw"}
_MAX_SHAPE: Final = 1 << 10


class _Layout(NamedTuple):
    """The numbers of the fields of a layer's message."""

    name: int
    blobs: int


_NEW: Final = _Layout(name=1, blobs=7)
_OLD: Final = _Layout(name=4, blobs=6)
_OLDEST: Final = _Layout(name=1, blobs=50)


class _Field(NamedTuple):
    """A field: `value` of a varint, or where its `size` bytes begin."""

    number: int
    wire: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class _Blob:
    dtype: str
    shape: tuple[int, ...]
    places: tuple[tuple[int, int], ...]


def read_caffe(path: Path) -> TensorFile:
    """The blobs of a model, which have no names: `<layer>/0` are a layer's weights, `<layer>/1` its bias.

    Raises FormatError for damage, UnsupportedError for HDF5 files and types that llmkit does not know.
    """
    tensors: list[TensorInfo] = []
    values: dict[str, Values] = {}
    with open_cursor(path) as cursor:
        start = cursor.take(min(len(_HDF5), cursor.left))
        cursor.position = 0
        if start.startswith(_HDF5):
            raise UnsupportedError(f"{path}: is an HDF5 file; llmkit reads Caffe's binary models (.caffemodel)")
        for name, blobs in _layers(cursor):
            for number, blob in enumerate(blobs):
                label = f"{name}/{number}"
                n_bytes = n_bytes_of(path, label, blob.dtype, blob.shape)
                stored = sum(size for _, size in blob.places)
                if stored != n_bytes:
                    problem = f"{blob.dtype} {list(blob.shape)} takes {n_bytes:,} bytes, but {stored:,} are stored"
                    raise FormatError(path, problem, tensor=label)
                offset = blob.places[0][0] if blob.places else 0
                tensors.append(TensorInfo(label, blob.dtype, blob.shape, path, offset, n_bytes))
                if len(blob.places) > 1:
                    values[label] = Joined(tuple((Range(path, label, begin), size) for begin, size in blob.places))
    if not tensors:
        raise FormatError(path, "holds no blobs of layers: no Caffe model, or one without weights")
    return TensorFile("caffe", path, (path,), by_name(path, tensors), values)


def _layers(cursor: Cursor) -> Iterator[tuple[str, list[_Blob]]]:
    for field in _fields(cursor, 0, cursor.size):
        if field.number == _LAYER and field.wire == BYTES:
            yield _layer(cursor, field, _NEW)
        elif field.number == _OLD_LAYER and field.wire == BYTES:
            oldest = [f for f in _messages(cursor, field) if f.number == _OLDEST_LAYER]
            yield _layer(cursor, oldest[0], _OLDEST) if oldest else _layer(cursor, field, _OLD)


def _layer(cursor: Cursor, layer: _Field, layout: _Layout) -> tuple[str, list[_Blob]]:
    name, blobs = "", []
    for field in _messages(cursor, layer):
        if field.number == layout.name:
            if field.size > MAX_NAME:
                raise FormatError(cursor.path, f"a layer's name of {field.size:,} bytes; the file is damaged")
            cursor.position = field.value
            try:
                name = cursor.take(field.size).decode("utf-8")
            except UnicodeDecodeError:
                raise FormatError(cursor.path, "a layer's name is not valid UTF-8; the file is damaged") from None
        elif field.number == layout.blobs:
            blobs.append(_blob(cursor, field))
    return name, blobs


def _blob(cursor: Cursor, blob: _Field) -> _Blob:
    shape: tuple[int, ...] = ()
    old_shape = dict.fromkeys(range(1, 5), 0)
    has_old_shape, raw_type = False, -1
    places: dict[int, list[tuple[int, int]]] = {number: [] for number in _DATA}
    for field in _fields(cursor, blob.value, blob.value + blob.size):
        if field.number == _SHAPE and field.wire == BYTES:
            shape = _shape(cursor, field)
        elif field.number in old_shape and field.wire == VARINT:
            old_shape[field.number], has_old_shape = field.value, True
        elif field.number == _RAW_TYPE and field.wire == VARINT:
            raw_type = field.value
        elif field.number in _DATA:
            if field.wire != BYTES:
                raise UnsupportedError(f"{cursor.path}: holds values one by one (not packed), as Caffe does not write")
            if field.size:
                places[field.number].append((field.value, field.size))
    used = [number for number in _DATA if places[number]]
    if len(used) > 1:
        raise FormatError(cursor.path, f"a blob has values in the fields {used}; expected one; the file is damaged")
    dtype = _DATA[used[0]] if used else "F32"
    if dtype == "raw":
        if raw_type not in _RAW_TYPES:
            raise UnsupportedError(f"{cursor.path}: a blob has the raw type {raw_type}; known: {_RAW_TYPES}")
        dtype = _RAW_TYPES[raw_type]
    found = places[used[0]] if used else []
    return _Blob(dtype, tuple(old_shape.values()) if has_old_shape else shape, tuple(found))


def _shape(cursor: Cursor, shape: _Field) -> tuple[int, ...]:
    dims: list[int] = []
    for field in _fields(cursor, shape.value, shape.value + shape.size):
        if field.number != 1:
            continue
        if field.wire == VARINT:
            dims.append(field.value)
        elif field.wire == BYTES and field.size <= _MAX_SHAPE:
            cursor.position, end = field.value, field.value + field.size
            while cursor.position < end:
                dims.append(_varint(cursor, end))
    return tuple(dims)


def _messages(cursor: Cursor, message: _Field) -> Iterator[_Field]:
    """The fields of bytes within a message."""
    for field in _fields(cursor, message.value, message.value + message.size):
        if field.wire == BYTES:
            yield field


def _fields(cursor: Cursor, begin: int, end: int) -> Iterator[_Field]:
    """The fields between two places of the file. Raises FormatError where they do not fit in there."""
    position = begin
    while position < end:
        cursor.position = position
        key = _varint(cursor, end)
        number, wire = key >> 3, key & 7
        value, size = 0, {FIXED32: 4, FIXED64: 8}.get(wire, 0)
        if number == 0 or wire not in (VARINT, FIXED64, BYTES, FIXED32):
            raise FormatError(cursor.path, f"no field begins at byte {position:,}: no Caffe model, or a damaged one")
        if wire == VARINT:
            value = _varint(cursor, end)
            value -= (1 << 64) if value >> 63 else 0
        elif wire == BYTES:
            size = _varint(cursor, end)
        if size > end - cursor.position:
            problem = f"field {number} at byte {position:,} wants {size:,} bytes; {end - cursor.position:,} are left"
            raise FormatError(cursor.path, f"{problem}; the file is truncated or damaged")
        position = cursor.position + size
        yield _Field(number, wire, value if wire == VARINT else cursor.position, size)


def _varint(cursor: Cursor, end: int) -> int:
    value = 0
    for index in range(10):
        if cursor.position >= end:
            break
        byte = cursor.take(1)[0]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF
    raise FormatError(cursor.path, f"no number ends at byte {cursor.position:,}: no Caffe model, or a damaged one")
