"""The protobuf reader: values of every kind against a plain encoder, and only WireError for anything else."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT, WireError, read_fields


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def encode(number: int, wire: int, payload: int | bytes) -> bytes:
    key = varint(number << 3 | wire)
    if isinstance(payload, int):
        return key + varint(payload)
    return key + (varint(len(payload)) if wire == BYTES else b"") + payload


FIELDS = st.one_of(
    st.tuples(st.just(VARINT), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(BYTES), st.binary(max_size=300)),
    st.tuples(st.just(FIXED32), st.binary(min_size=4, max_size=4)),
    st.tuples(st.just(FIXED64), st.binary(min_size=8, max_size=8)),
)


@given(fields=st.lists(st.tuples(st.integers(1, 2**29 - 1), FIELDS)))
def test_what_was_encoded_is_read(fields: list[tuple[int, tuple[int, Any]]]) -> None:
    message = b"".join(encode(number, wire, payload) for number, (wire, payload) in fields)
    found = [(field.number, (field.wire, field.payload)) for field in read_fields(memoryview(message))]
    assert found == fields


@settings(max_examples=500)
@given(message=st.binary(max_size=200))
def test_any_bytes(message: bytes) -> None:
    try:
        for field in read_fields(memoryview(message)):
            for convert in (field.integer, field.boolean, field.float32, field.text, field.message):
                try:
                    convert()
                except WireError:
                    continue
    except WireError:
        return


def only_field(message: bytes) -> Any:
    (field,) = read_fields(memoryview(message))
    return field


def test_values() -> None:
    assert only_field(encode(3, VARINT, -5)).integer() == -5
    assert only_field(encode(3, VARINT, 2**31)).integer() == 2**31
    assert only_field(encode(3, VARINT, 1)).boolean() is True
    assert only_field(encode(3, FIXED32, struct.pack("<f", -0.5))).float32() == -0.5
    assert only_field(encode(3, BYTES, "é".encode())).text() == "é"
    assert bytes(only_field(encode(3, BYTES, b"\0\1")).message()) == b"\0\1"


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"\x08", "ends within a varint"),
        (b"\x08\x80", "ends within a varint"),
        (b"\x12\x03ab", "field 2 at byte 0 wants 3 bytes, 2 are left"),
        (b"\x08\x01\x15\x00\x00", "field 2 at byte 2 wants 4 bytes, 2 are left"),
        (b"\x11\x00", "field 2 at byte 0 wants 8 bytes"),
        (b"\x0c", "wire type 4 at byte 0"),
        (b"\x02\x00", "field number 0 at byte 0"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than ten bytes"),
        (varint(1 << 33) + b"\x00", "field number 1073741824"),
    ],
)
def test_broken_messages(message: bytes, problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        list(read_fields(memoryview(message)))


def test_wrong_types() -> None:
    with pytest.raises(WireError, match="field 3 holds a varint, expected bytes"):
        only_field(encode(3, VARINT, 1)).text()
    with pytest.raises(WireError, match="field 3 is not valid UTF-8"):
        only_field(encode(3, BYTES, b"\xff")).text()
