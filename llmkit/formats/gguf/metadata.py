"""The metadata of an open GGUF file: checked when it is opened, decoded when it is asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmkit.errors import FormatError
from llmkit.formats.gguf.cursor import Cursor
from llmkit.formats.gguf.limits import MAX_ARRAY_ITEMS, MAX_ENTRIES, MAX_KEY_BYTES
from llmkit.formats.gguf.values import NUMPY_DTYPES, Value, ValueType

_U64: Final = struct.Struct("<Q")
_VALUE_TYPES: Final = {int(type): type for type in ValueType}
# An empty key cannot be, so the smallest entry is: length, one byte, type, a value of one byte.
_SMALLEST_ENTRY: Final = 8 + 1 + 4 + 1


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a value lies: `count` items of `element_type`, bytes `start` to `end` of the file."""

    is_array: bool
    element_type: ValueType
    count: int
    start: int
    end: int


class Metadata(Mapping[str, Value]):
    """Values by key, in the order of the file. Each is decoded at its first use, then kept.

    Decoding an unused value after the file was closed raises ValueError.
    """

    def __init__(self, path: Path, data: Any, entries: dict[str, Entry]) -> None:
        self._path = path
        self._data = data
        self._entries = entries
        self._values: dict[str, Value] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Value:
        if key not in self._values:
            entry = self._entries[key]
            items = self._decode(entry)
            if entry.is_array:
                self._values[key] = Value(ValueType.ARRAY, tuple(items), entry.element_type)
            else:
                self._values[key] = Value(entry.element_type, items[0])
        return self._values[key]

    def entry(self, key: str) -> Entry:
        """Type and number of items of a value, without decoding it. Raises KeyError."""
        return self._entries[key]

    def close(self) -> None:
        """Let go of the file's mapping; values already decoded stay."""
        self._data = None

    def _decode(self, entry: Entry) -> list[Any]:
        if self._data is None:
            raise ValueError(f"{self._path} is closed")
        if entry.element_type == ValueType.STRING:
            return self._decode_strings(entry)
        raw = self._data[entry.start : entry.end]
        items: list[Any] = np.frombuffer(raw, dtype=NUMPY_DTYPES[entry.element_type]).tolist()
        return [item != 0 for item in items] if entry.element_type == ValueType.BOOL else items

    def _decode_strings(self, entry: Entry) -> list[str]:
        raw = self._data[entry.start : entry.end]
        unpack, position = _U64.unpack_from, 0
        texts = []
        for _ in range(entry.count):
            start = position + 8
            position = start + unpack(raw, position)[0]
            texts.append(raw[start:position].decode("utf-8", "surrogateescape"))
        return texts


def scan_metadata(cursor: Cursor, n_keys: int) -> Metadata:
    """Check `n_keys` key-value pairs and move over them.

    Raises FormatError for whatever gguf.cpp refuses (empty and duplicate keys, unknown types, arrays of arrays,
    lengths beyond the limits or the file), for keys over 65,535 bytes, with NUL or not UTF-8, and for booleans that are
    neither 0 nor 1.
    """
    path = cursor.path
    if n_keys > MAX_ENTRIES or n_keys * _SMALLEST_ENTRY > cursor.remaining:
        raise FormatError(path, f"claims {n_keys:,} metadata keys, more than the file can hold; it is damaged")
    entries: dict[str, Entry] = {}
    for number in range(n_keys):
        key = cursor.name(f"metadata key {number}", MAX_KEY_BYTES)
        if not key:
            raise FormatError(path, f"metadata key {number} is empty")
        if "\0" in key:  # for a reader in C it would end there, and might be another key
            raise FormatError(path, f"metadata key {number}, {key[:200]!r}, holds a NUL character")
        if key in entries:
            raise FormatError(path, f"metadata key {key!r} occurs twice")
        entries[key] = _scan_value(cursor, f"metadata {key!r}")
    return Metadata(path, cursor.data, entries)


def _scan_value(cursor: Cursor, what: str) -> Entry:
    type_number = cursor.u32(f"the type of {what}")
    is_array = type_number == ValueType.ARRAY
    count = 1
    if is_array:
        type_number = cursor.u32(f"the element type of {what}")
        count = cursor.u64(f"the length of {what}")
        if type_number == ValueType.ARRAY:
            raise FormatError(cursor.path, f"{what} is an array of arrays, which GGUF readers do not take")
    if type_number not in _VALUE_TYPES:
        raise FormatError(cursor.path, f"{what} has type {type_number}; value types go from 0 to {max(ValueType)}")
    element_type = _VALUE_TYPES[type_number]
    if count > MAX_ARRAY_ITEMS:
        raise FormatError(cursor.path, f"{what} claims {count:,} items; the limit is {MAX_ARRAY_ITEMS:,}")
    start = cursor.position
    if element_type == ValueType.STRING:
        if count * 8 > cursor.remaining:
            problem = f"{what} claims {count:,} strings, more than the {cursor.remaining:,} bytes left can hold"
            raise FormatError(cursor.path, f"{problem}; the file is truncated or damaged")
        if is_array:
            cursor.skip_strings(count, what)
        else:
            cursor.skip_string(what)
    else:
        cursor.take(count * NUMPY_DTYPES[element_type].itemsize, what)
    if element_type == ValueType.BOOL:
        _check_booleans(cursor, start, what)
    return Entry(is_array, element_type, count, start, cursor.position)


def _check_booleans(cursor: Cursor, start: int, what: str) -> None:
    flags = np.frombuffer(cursor.data, dtype=np.uint8, count=cursor.position - start, offset=start)
    if flags.size and flags.max() > 1:
        raise FormatError(cursor.path, f"{what}: a boolean is {flags.max()}, expected 0 or 1")
