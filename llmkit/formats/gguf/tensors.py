"""The tensor table of a GGUF file: one record per tensor, and the rules both reader and writer apply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf.cursor import Cursor
from llmkit.formats.gguf.limits import MAX_DIMENSIONS, MAX_ELEMENTS, MAX_ENTRIES, MAX_NAME_BYTES
from llmkit.types import BLOCK_LAYOUTS, TensorType, tensor_bytes

_TYPES: Final = {int(type): type for type in TensorType}
# Numbers of ggml.h that no longer stand for a type.
_REMOVED_TYPES: Final[dict[int, str]] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
# A tensor of no dimensions with a name of one byte: two lengths, the name, type, offset.
_SMALLEST_RECORD: Final = 8 + 1 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One record of the table; `shape` slowest dimension first, `offset` from the start of the data section."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def name_problem(name: str) -> str | None:
    """Why ggml could not hold a tensor of this name, or None."""
    if not name:
        return "a tensor has an empty name"
    if "\0" in name:
        return f"tensor name {name!r} holds a NUL character"
    n_bytes = len(name.encode("utf-8"))
    if n_bytes > MAX_NAME_BYTES:
        return f"tensor name {name!r} takes {n_bytes} bytes; ggml allows {MAX_NAME_BYTES}"
    return None


def shape_problem(type: TensorType, shape: tuple[int, ...]) -> str | None:
    """Why ggml could not hold a tensor of this type and shape (slowest dimension first), or None."""
    if len(shape) > MAX_DIMENSIONS:
        return f"{len(shape)} dimensions; ggml allows {MAX_DIMENSIONS}"
    n_elements = 1
    for dim in shape:
        if not 0 <= dim <= MAX_ELEMENTS:
            return f"dimension {dim} is out of range"
        n_elements *= dim or 1  # a zero must not hide that the others overflow
    if n_elements > MAX_ELEMENTS:
        return f"shape {list(shape)} has {n_elements} elements; the limit is {MAX_ELEMENTS}"
    layout = BLOCK_LAYOUTS[type]
    row = shape[-1] if shape else 1
    if row % layout.block_size:
        return f"a row of {row} is not a whole number of {type.name} blocks of {layout.block_size}"
    # All types take at least one bit per weight; ggml counts bytes in 64 bits.
    if n_elements // layout.block_size * layout.block_bytes >= 1 << 63:
        return f"shape {list(shape)} of {type.name} takes 2^63 bytes or more"
    return None


def scan_tensors(cursor: Cursor, n_tensors: int) -> list[TensorRecord]:
    """Read the tensor table; offsets are still unchecked.

    Raises FormatError for whatever ggml refuses, UnsupportedError for a type that ggml removed.
    """
    path = cursor.path
    if n_tensors > MAX_ENTRIES or n_tensors * _SMALLEST_RECORD > cursor.remaining:
        raise FormatError(path, f"claims {n_tensors:,} tensors, more than the file can hold; it is damaged")
    records: list[TensorRecord] = []
    names: set[str] = set()
    for number in range(n_tensors):
        name = cursor.name(f"the name of tensor {number}", MAX_NAME_BYTES)
        problem = name_problem(name)
        if problem is not None:
            raise FormatError(path, problem)
        if name in names:
            raise FormatError(path, "occurs twice", tensor=name)
        names.add(name)
        records.append(_scan_record(cursor, name))
    return records


def _scan_record(cursor: Cursor, name: str) -> TensorRecord:
    path, what = cursor.path, f"the shape, type and offset of tensor {name!r}"
    n_dims = cursor.u32(what)
    if n_dims > MAX_DIMENSIONS:
        raise FormatError(path, f"{n_dims:,} dimensions; ggml allows {MAX_DIMENSIONS}", tensor=name)
    shape = tuple(cursor.u64(what) for _ in range(n_dims))[::-1]  # stored fastest dimension first
    type_number = cursor.u32(what)
    if type_number in _REMOVED_TYPES:
        removed = _REMOVED_TYPES[type_number]
        raise UnsupportedError(
            f"{path}: tensor {name!r}: type {removed} was removed from ggml; convert the model again from its source"
        )
    if type_number not in _TYPES:
        problem = f"unknown type {type_number}; the file is damaged, or newer than this version of llmkit"
        raise FormatError(path, problem, tensor=name)
    type = _TYPES[type_number]
    invalid = shape_problem(type, shape)
    if invalid is not None:
        raise FormatError(path, invalid, tensor=name)
    return TensorRecord(name, type, shape, cursor.u64(what), tensor_bytes(type, shape))
