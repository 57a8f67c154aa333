"""The structure of LiteRT's model files (.tflite).

Its runtime reads them without looking: offsets that lead out of the file would end the process.

Format: LiteRT's schema.fbs as a FlatBuffer: a table begins with the distance back to its vtable, which has 16-bit
numbers: its own length, the table's, and where in the table each field is, 0 for one that is not there. Strings,
vectors and other tables are fields of 4 bytes with the distance to them; a vector begins with its length.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmkit.errors import FormatError

# Fields in their order: numbers are bytes of a scalar, with * of a vector's items; names are other tables, `any` one
# whose fields are scalars. What is not here is not in models that llmkit writes.
_TABLES: Final[dict[str, tuple[str, ...]]] = {
    "Model": ("4", "OperatorCode*", "SubGraph*", "text", "Buffer*", "4*", "Metadata*", "SignatureDef*"),
    "OperatorCode": ("1", "text", "4", "4"),
    "SubGraph": ("Tensor*", "4*", "4*", "Operator*", "text", "4"),
    "Tensor": ("4*", "1", "4", "text", "Quantization", "1", "any", "4*"),
    "Quantization": ("4*", "4*", "4*", "8*", "1", "any", "4"),
    "Operator": ("4", "4*", "4*", "1", "any", "1*", "1", "1*", "4*", "8", "8", "1", "any"),
    "Buffer": ("1*", "8", "8"),
    "Metadata": ("text", "4"),
    "SignatureDef": ("TensorMap*", "TensorMap*", "text", "text", "4"),
    "TensorMap": ("text", "4"),
    "any": (),
}


def check_tflite(path: Path) -> None:
    """Raise FormatError for a file whose tables, vectors and indices lead out of it, or that is no such file.

    Vectors in an operator's options are not looked at: the models that llmkit writes have none.
    """
    try:
        with path.open("rb") as file:
            if file.read(8)[4:] != b"TFL3":
                raise FormatError(path, "is no LiteRT model: it does not begin as one")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_indices(_Reader(path, content))
    except OSError as error:
        raise FormatError(path, f"cannot be read: {error.strerror}") from error


class _Reader:
    """Reads tables; raises FormatError for what is not within the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self.n_bytes = len(content)
        self._tables_left = len(content) // 4  # one that is pointed to again and again would take forever

    def model(self) -> list[Any]:
        return self._table("Model", self._target(0))

    def numbers(self, place: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """A vector of int32."""
        start, n = place
        return np.frombuffer(self._content[start : start + 4 * n], "<i4")

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise FormatError(self._path, f"is damaged: {what}")

    def _table(self, name: str, at: int) -> list[Any]:
        """Values of the fields; of a vector of scalars (start, length)."""
        self._tables_left -= 1
        self.require(self._tables_left >= 0, "more tables than it has room for")
        vtable = at - self._unpack("i", at)
        length, size = self._unpack("H", vtable), self._unpack("H", vtable + 2)
        self.require(length >= 4 and length % 2 == 0 and size >= 4, f"a vtable of {name}")
        self.require(vtable + length <= self.n_bytes and at + size <= self.n_bytes, f"a table {name} ends beyond it")
        places = struct.unpack_from(f"<{length // 2 - 2}H", self._content, vtable + 4)
        self.require(all(place == 0 or 4 <= place < size for place in places), f"a field of {name}")
        kinds = _TABLES[name]
        found = []
        for place, kind in zip((*places, *([0] * len(kinds))), kinds, strict=False):
            width = int(kind) if kind.isdigit() else 4
            self.require(not place or place + width <= size, f"a field of {name}")
            found.append(self._field(kind, at + place) if place else _absent(kind))
        return found

    def _field(self, kind: str, at: int) -> Any:
        if kind.isdigit():
            return self._unpack({"1": "B", "4": "I", "8": "Q"}[kind], at)
        at = self._target(at)
        if kind == "text":
            return self._vector(at, 1)
        if not kind.endswith("*"):
            return self._table(kind, at)
        item = kind[:-1]
        if item.isdigit():
            return self._vector(at, int(item))
        start, n = self._vector(at, 4)
        return [self._table(item, self._target(start + 4 * i)) for i in range(n)]

    def _vector(self, at: int, width: int) -> tuple[int, int]:
        n = self._unpack("I", at)
        self.require(at + 4 + n * width <= self.n_bytes, f"a vector of {n:,} ends beyond it")
        return at + 4, n

    def _target(self, at: int) -> int:
        return at + self._unpack("I", at)

    def _unpack(self, form: str, at: int) -> int:
        self.require(0 <= at <= self.n_bytes - struct.calcsize(form), f"something lies at {at:,}")
        (found,) = struct.unpack_from(f"<{form}", self._content, at)
        return int(found)


def _absent(kind: str) -> Any:
    if kind.isdigit():
        return 0
    return [] if kind.endswith("*") and not kind[0].isdigit() else (0, 0)


def _check_indices(reader: _Reader) -> None:
    _, codes, graphs, _, buffers, _, _, signatures = reader.model()
    reader.require(bool(graphs and buffers), "without graphs or buffers")
    for _, offset, size in buffers:
        reader.require(offset + size <= reader.n_bytes, f"a buffer of {size:,} bytes ends beyond it")
    for tensors, inputs, outputs, operators, *_ in graphs:
        used = [tensor[2] for tensor in tensors]
        reader.require(max(used, default=0) < len(buffers), "a tensor's buffer is missing")
        _require_tensors(reader, (inputs, outputs), len(tensors), 0)
        for operator in operators:
            reader.require(operator[0] < len(codes), "an operator's code is missing")
            _require_tensors(reader, (operator[2],), len(tensors), 0)
            _require_tensors(reader, (operator[1], operator[8]), len(tensors), -1)  # -1: an argument left out
    for signature in signatures:
        reader.require(signature[4] < len(graphs), "a signature's graph is missing")
        n_tensors = len(graphs[signature[4]][0])
        reader.require(all(one[1] < n_tensors for one in _maps(signature)), "a signature's tensor is missing")


def _require_tensors(reader: _Reader, vectors: Sequence[tuple[int, int]], n_tensors: int, lowest: int) -> None:
    for place in vectors:
        found = reader.numbers(place)
        reader.require(not found.size or (found.min() >= lowest and found.max() < n_tensors), "a tensor is missing")


def _maps(signature: list[Any]) -> Iterator[list[Any]]:
    yield from signature[0]
    yield from signature[1]
