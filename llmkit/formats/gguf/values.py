"""Typed metadata values of GGUF files, and their bytes.

Format: ggml's docs/gguf.md; little endian throughout. A string is a u64 length and its bytes; an array is the
u32 type of its elements, their u64 count, and the elements one after the other.

Strings are `str`. GGUF asks for UTF-8, but files in circulation hold tokens that are not, and llama.cpp takes
any bytes: those that are not UTF-8 stand as lone surrogates (Python's "surrogateescape"), so that writing
gives the same bytes back. `text.encode("utf-8", "surrogateescape")` gives them directly.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import index
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.formats.gguf.limits import MAX_ARRAY_ITEMS, MAX_STRING_BYTES

_U64: Final = struct.Struct("<Q")


class ValueType(IntEnum):
    """Types of metadata values (`enum gguf_type`)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# The fixed-size types; BOOL is read as a byte.
NUMPY_DTYPES: Final[dict[ValueType, np.dtype[Any]]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("<u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class Value:
    """One metadata value.

    `data` is a Python int, float, bool or str; for an array a tuple of these, of type `element_type` (None for
    all other types). Make values with the constructors below: they check ranges.
    """

    type: ValueType
    data: Any
    element_type: ValueType | None = None


def u8(number: int) -> Value:
    """An unsigned 8-bit integer; ValueError when `number` does not fit."""
    return _scalar(ValueType.UINT8, number)


def i8(number: int) -> Value:
    """A signed 8-bit integer; ValueError when `number` does not fit."""
    return _scalar(ValueType.INT8, number)


def u16(number: int) -> Value:
    """An unsigned 16-bit integer; ValueError when `number` does not fit."""
    return _scalar(ValueType.UINT16, number)


def i16(number: int) -> Value:
    """A signed 16-bit integer; ValueError when `number` does not fit."""
    return _scalar(ValueType.INT16, number)


def u32(number: int) -> Value:
    """An unsigned 32-bit integer; ValueError when `number` does not fit."""
    return _scalar(ValueType.UINT32, number)


def i32(number: int) -> Value:
    """A signed 32-bit integer; ValueError when `number` does not fit."""
    return _scalar(ValueType.INT32, number)


def u64(number: int) -> Value:
    """An unsigned 64-bit integer; ValueError when `number` does not fit."""
    return _scalar(ValueType.UINT64, number)


def i64(number: int) -> Value:
    """A signed 64-bit integer; ValueError when `number` does not fit."""
    return _scalar(ValueType.INT64, number)


def f32(number: float) -> Value:
    """A 32-bit float; `data` is `number` rounded to float32, so that it equals what a reader finds."""
    return _scalar(ValueType.FLOAT32, number)


def f64(number: float) -> Value:
    """A 64-bit float."""
    return _scalar(ValueType.FLOAT64, number)


def boolean(flag: bool) -> Value:
    """True or false."""
    return _scalar(ValueType.BOOL, flag)


def string(text: str | bytes) -> Value:
    """A string; bytes that are not UTF-8 are kept as lone surrogates, see above."""
    return _scalar(ValueType.STRING, text)


def array(element_type: ValueType, items: Sequence[Any] | NDArray[Any]) -> Value:
    """An array of `element_type`, from any sequence or a one-dimensional NumPy array.

    Raises ValueError or TypeError when an item does not fit the type, and for arrays of arrays, which ggml
    does not read.
    """
    return Value(ValueType.ARRAY, _checked_items(element_type, items), element_type)


def _scalar(type: ValueType, item: Any) -> Value:
    return Value(type, _checked_items(type, (item,))[0])


def _checked_items(type: ValueType, source: Sequence[Any] | NDArray[Any]) -> tuple[Any, ...]:
    """`source` as Python objects of exactly `type`."""
    if isinstance(source, str | bytes):
        raise TypeError("expected a sequence of items, found one string")
    if isinstance(source, np.ndarray) and source.ndim != 1:
        raise ValueError(f"expected a one-dimensional array, found shape {source.shape}")
    items: Sequence[Any] = source.tolist() if isinstance(source, np.ndarray) else source
    if len(items) > MAX_ARRAY_ITEMS:
        raise ValueError(f"{len(items):,} items; GGUF readers take at most {MAX_ARRAY_ITEMS:,}")
    if type == ValueType.STRING:
        return _checked_texts(items)
    if type == ValueType.ARRAY:
        raise ValueError("ggml does not read arrays of arrays")
    if type == ValueType.BOOL:
        for item in items:
            if not isinstance(item, bool | np.bool_):
                raise TypeError(f"expected true or false, found {item!r}")
        return tuple(bool(item) for item in items)
    if type == ValueType.FLOAT64:
        return tuple(_number(item) for item in items)
    if type == ValueType.FLOAT32:
        return _rounded_to_f32(items)
    limits = np.iinfo(NUMPY_DTYPES[type])
    low, high = int(limits.min), int(limits.max)
    integers = tuple(index(item) for item in items)
    for number in integers:
        if not low <= number <= high:
            raise ValueError(f"{number} is outside the range of {type.name}, {low} to {high}")
    return integers


def _checked_texts(items: Sequence[Any]) -> tuple[str, ...]:
    """`items` as texts whose bytes a reader accepts."""
    if _are_all(str, items) and max(map(len, items), default=0) <= MAX_STRING_BYTES // 4:
        return tuple(items)  # a character takes at most four bytes
    return tuple(_checked_text(item) for item in items)


def _checked_text(item: Any) -> str:
    if isinstance(item, bytes):
        text = item.decode("utf-8", "surrogateescape")
    elif isinstance(item, str):
        text = str(item)
    else:
        raise TypeError(f"expected text, found {item!r}")
    if len(text) > MAX_STRING_BYTES // 4:
        encode_string(text)  # checks the length in bytes
    return text


def _number(item: Any) -> float:
    if isinstance(item, str | bytes | bool | np.bool_):
        raise TypeError(f"expected a number, found {item!r}")
    return float(item)


def _rounded_to_f32(items: Sequence[Any]) -> tuple[float, ...]:
    exact = np.array(items if _are_all(float, items) else [_number(item) for item in items], dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
    overflown = np.isfinite(exact) & ~np.isfinite(rounded)
    if overflown.any():
        raise ValueError(f"{float(exact[overflown.argmax()])!r} is outside the range of FLOAT32")
    return tuple(rounded.tolist())


def _are_all(kind: type, items: Sequence[Any]) -> bool:
    """Whether every item is of exactly that class; fast, for arrays as long as a vocabulary."""
    return set(map(type, items)) <= {kind}


def encode_string(text: str) -> bytes:
    """Length and bytes, as strings, keys and tensor names are stored.

    Raises ValueError when it is too long, or holds surrogates that stand for no byte.
    """
    return _encode_strings((text,))


def _encode_strings(texts: Sequence[str]) -> bytes:
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    longest = max(map(len, encoded), default=0)
    if longest > MAX_STRING_BYTES:
        raise ValueError(f"a string of {longest:,} bytes; GGUF readers take at most {MAX_STRING_BYTES:,}")
    return b"".join([_U64.pack(len(text)) + text for text in encoded])


def encode_value(value: Value) -> bytes:
    """The type number and the data of `value`, as they follow a key.

    Raises ValueError or TypeError when the data does not fit the type.
    """
    if value.type != ValueType.ARRAY:
        return struct.pack("<I", value.type) + _encode_items(value.type, (value.data,))
    if value.element_type is None:
        raise ValueError("an array value needs an element_type")
    head = struct.pack("<IIQ", ValueType.ARRAY, value.element_type, len(value.data))
    return head + _encode_items(value.element_type, value.data)


def _encode_items(type: ValueType, items: Sequence[Any]) -> bytes:
    checked = _checked_items(type, items)
    if type == ValueType.STRING:
        return _encode_strings(checked)
    return np.array(checked, dtype=NUMPY_DTYPES[type]).tobytes()
