"""A reader of the protobuf wire format, bounds-checked, for messages whose schema the caller knows.

Format: protobuf.dev, "Encoding". A message is a run of fields: a varint key (field number << 3 | wire type), then
a varint, 8 bytes, a length and that many bytes, or 4 bytes. Groups (wire types 3 and 4) are long deprecated and
refused. Nothing is copied and nothing is allocated by a length that the bytes do not hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

_WIRE_NAMES: Final = {VARINT: "a varint", FIXED64: "8 bytes", BYTES: "bytes", FIXED32: "4 bytes"}
_MAX_FIELD_NUMBER: Final = (1 << 29) - 1


class WireError(ValueError):
    """Bytes that are no protobuf message, or a field of another type than expected. Callers name the file."""


class Field(NamedTuple):
    """One field: `payload` is an int for VARINT (unsigned, 64 bits), a view of the bytes for all others."""

    number: int
    wire: int
    payload: int | memoryview

    def integer(self) -> int:
        """The value of an int32, int64 or enum field: varints hold negative numbers as 64-bit two's complement."""
        value = self._expect(VARINT)
        assert isinstance(value, int)
        return value - (1 << 64) if value >> 63 else value

    def boolean(self) -> bool:
        """The value of a bool field."""
        return bool(self._expect(VARINT))

    def float32(self) -> float:
        """The value of a float field."""
        number: float = struct.unpack("<f", self._expect(FIXED32))[0]  # type: ignore[arg-type]
        return number

    def message(self) -> memoryview:
        """The bytes of an embedded message or of a bytes field."""
        view = self._expect(BYTES)
        assert isinstance(view, memoryview)
        return view

    def text(self) -> str:
        """The value of a string field; WireError if it is not UTF-8."""
        try:
            return str(self.message(), "utf-8")
        except UnicodeDecodeError:
            raise WireError(f"field {self.number} is not valid UTF-8: {bytes(self.message()[:40])!r}") from None

    def _expect(self, wire: int) -> int | memoryview:
        if self.wire != wire:
            raise WireError(f"field {self.number} holds {_WIRE_NAMES[self.wire]}, expected {_WIRE_NAMES[wire]}")
        return self.payload


def read_fields(message: memoryview) -> Iterator[Field]:
    """Every field of `message` (a view of bytes), in order; repeated fields occur several times.

    Raises WireError for a truncated or overlong field, a field number of zero, and unknown wire types.
    """
    position = 0
    end = len(message)
    while position < end:
        start = position
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if not 0 < number <= _MAX_FIELD_NUMBER:
            raise WireError(f"field number {number} at byte {start}")
        if wire == VARINT:
            value, position = _varint(message, position)
            yield Field(number, wire, value)
            continue
        if wire == BYTES:
            length, position = _varint(message, position)
        elif wire == FIXED32:
            length = 4
        elif wire == FIXED64:
            length = 8
        else:
            raise WireError(f"wire type {wire} at byte {start}")
        if length > end - position:
            raise WireError(f"field {number} at byte {start} wants {length:,} bytes, {end - position:,} are left")
        yield Field(number, wire, message[position : position + length])
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The unsigned 64-bit varint at `position`, and the position after it."""
    value = 0
    for index in range(10):
        if position + index >= len(message):
            raise WireError("ends within a varint")
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position + index + 1
    raise WireError(f"varint of more than ten bytes at byte {position}")
