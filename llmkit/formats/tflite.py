"""LiteRT's models (.tflite), checked before its runtime sees them: that trusts every offset and number in the file.

Format: FlatBuffers, TensorFlow Lite's schema version 3. A table begins with the distance back to its vtable, which
lists where in the table the fields are; strings, vectors and other tables are offsets forward from where they stand.
Constants of files above 2 GB lie behind the FlatBuffer, by offset and size.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from llmkit.errors import FormatError, UnsupportedError

_Kind: TypeAlias = "str | tuple[str, str]"
_Table: TypeAlias = "dict[str, Any]"

# Fields by number: a scalar's struct code, "text", ("vector", code), ("table", name) or ("tables", name). What a table
# has beyond these is refused.
_SCHEMA: Final[Mapping[str, Mapping[int, tuple[str, _Kind]]]] = {
    "Model": {
        0: ("version", "I"),
        1: ("codes", ("tables", "OperatorCode")),
        2: ("graphs", ("tables", "SubGraph")),
        3: ("description", "text"),
        4: ("buffers", ("tables", "Buffer")),
        5: ("metadata_buffers", ("vector", "i")),
        6: ("metadata", ("tables", "Metadata")),
        7: ("signatures", ("tables", "SignatureDef")),
    },
    "OperatorCode": {0: ("old_code", "b"), 2: ("version", "i"), 3: ("code", "i")},
    "SubGraph": {
        0: ("tensors", ("tables", "Tensor")),
        1: ("inputs", ("vector", "i")),
        2: ("outputs", ("vector", "i")),
        3: ("operators", ("tables", "Operator")),
        4: ("name", "text"),
        5: ("debug", "i"),
    },
    "Tensor": {
        0: ("shape", ("vector", "i")),
        1: ("type", "b"),
        2: ("buffer", "I"),
        3: ("name", "text"),
        4: ("quantization", ("table", "Quantization")),
        8: ("has_rank", "b"),
    },
    "Quantization": {
        0: ("min", ("vector", "f")),
        1: ("max", ("vector", "f")),
        2: ("scale", ("vector", "f")),
        3: ("zero_point", ("vector", "q")),
        6: ("axis", "i"),
    },
    "Operator": {
        0: ("code", "I"),
        1: ("inputs", ("vector", "i")),
        2: ("outputs", ("vector", "i")),
        3: ("options_type", "B"),
        4: ("options", ("table", "Options")),
        13: ("debug", "i"),
    },
    "Buffer": {0: ("data", ("vector", "B")), 1: ("offset", "Q"), 2: ("size", "Q")},
    "Metadata": {0: ("name", "text"), 1: ("buffer", "I")},
    "SignatureDef": {
        0: ("inputs", ("tables", "TensorMap")),
        1: ("outputs", ("tables", "TensorMap")),
        2: ("key", "text"),
        4: ("graph", "I"),
    },
    "TensorMap": {0: ("name", "text"), 1: ("tensor", "I")},
}
# Of the models that llmkit writes: numbers of operators, and of options that are scalars alone.
_OPERATORS: Final = {
    **{0: "ADD", 2: "CONCATENATION", 7: "EMBEDDING_LOOKUP", 9: "FULLY_CONNECTED", 14: "LOGISTIC", 18: "MUL"},
    **{22: "RESHAPE", 25: "SOFTMAX", 28: "TANH", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB", 42: "DIV"},
    **{48: "TOPK_V2", 53: "CAST", 55: "MAXIMUM", 57: "MINIMUM", 58: "LESS", 61: "GREATER", 62: "GREATER_EQUAL"},
    **{63: "LESS_EQUAL", 64: "SELECT", 65: "SLICE", 74: "SUM", 76: "RSQRT", 83: "PACK", 86: "LOGICAL_AND"},
    **{107: "GATHER_ND", 123: "SELECT_V2", 126: "BATCH_MATMUL", 130: "BROADCAST_TO", 150: "GELU"},
    **{151: "DYNAMIC_UPDATE_SLICE"},
}
_OPTIONS: Final = frozenset({0, 8, 9, 10, 11, 21, 26, 27, 28, 29, 34, 37, 47, 48, 59, 98, 101, 116})
_BYTES: Final = {0: 4, 1: 2, 2: 4, 4: 8, 6: 1, 9: 1}  # of an element of float32, float16, int32, int64, boolean, int8
_MAX_TABLES: Final = 1 << 20
_MAX_RANK: Final = 8
_LARGEST: Final = 1 << 31


def check_tflite(path: Path) -> None:
    """Raise FormatError for damage, UnsupportedError for a model of other operations than llmkit's have.

    Checked are all offsets and lengths, numbers of tensors, buffers and operators, and the sizes of constants; what
    shapes operators take is the runtime's business.
    """
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise FormatError(path, "is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = _Reader(path, data).model()
            _check_model(path, model, len(data))


@dataclass(slots=True)
class _Reader:
    """Reads tables within the bounds of the file."""

    path: Path
    data: mmap.mmap
    n_tables: int = 0

    def model(self) -> _Table:
        if len(self.data) < 8 or self.data[4:8] != b"TFL3":
            raise FormatError(self.path, "does not begin like a LiteRT model (TFL3)")
        return self.table(self.number("I", 0), "Model")

    def number(self, code: str, at: int) -> int:
        size = struct.calcsize(code)
        if not 0 <= at <= len(self.data) - size or at % size:
            raise self.damaged(at)
        (found,) = struct.unpack_from(f"<{code}", self.data, at)
        return int(found) if code != "f" else 0

    def table(self, at: int, name: str) -> _Table:
        self.n_tables += 1
        if self.n_tables > _MAX_TABLES:
            raise FormatError(self.path, f"has more than {_MAX_TABLES:,} tables")
        vtable = at - self.number("i", at)
        length, size = self.number("H", vtable), self.number("H", vtable + 2)
        if length < 4 or length % 2 or size < 4 or vtable + length > len(self.data) or at + size > len(self.data):
            raise self.damaged(vtable)
        places = struct.unpack_from(f"<{length // 2 - 2}H", self.data, vtable + 4)
        if name == "Options":
            if any(place and place + 8 > len(self.data) - at for place in places):
                raise self.damaged(vtable)
            return {}
        fields, found = _SCHEMA[name], {}
        for i, place in enumerate(places):
            if not place:
                continue
            if i not in fields:
                raise UnsupportedError(f"{self.path}: field {i} of a {name}, which llmkit's models do not have")
            key, kind = fields[i]
            if not 4 <= place < size:
                raise self.damaged(vtable)
            found[key] = self.field(at + place, kind)
        return found

    def field(self, at: int, kind: _Kind) -> Any:
        if isinstance(kind, str) and kind != "text":
            return self.number(kind, at)
        place = at + self.number("I", at)
        if kind == "text":
            begin, count = self.span(place, 1)
            if begin + count >= len(self.data) or self.data[begin + count]:
                raise self.damaged(place)
            return self.data[begin : begin + min(count, 200)]
        form, what = kind
        if form == "table":
            return self.table(place, what)
        if form == "tables":
            begin, count = self.span(place, 4)
            entries = range(begin, begin + 4 * count, 4)
            return [self.table(entry + self.number("I", entry), what) for entry in entries]
        begin, count = self.span(place, struct.calcsize(what))
        if what == "B":  # a constant
            return range(count)
        return np.frombuffer(self.data, f"<{what}", count, begin).tolist()

    def span(self, at: int, size: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many they are."""
        count = self.number("I", at)
        if (at + 4) % size or at + 4 + count * size > len(self.data):
            raise self.damaged(at)
        return at + 4, count

    def damaged(self, at: int) -> FormatError:
        return FormatError(self.path, f"is damaged or cut off: what stands at byte {at:,} leads out of the file")


def _check_model(path: Path, model: _Table, n_bytes: int) -> None:
    """Raise FormatError or UnsupportedError for numbers without meaning."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise FormatError(path, f"{what}: the model is damaged")

    require(model.get("version") == 3, f"version {model.get('version')}, expected 3")
    buffers, graphs = model.get("buffers", []), model.get("graphs", [])
    sizes = []
    for buffer in buffers:
        offset, size = buffer.get("offset", 0), buffer.get("size", 0)
        require(offset + size <= n_bytes, "a constant beyond the end of the file")
        sizes.append(size if offset > 1 else len(buffer.get("data", ())))
    codes = [max(code.get("code", 0), code.get("old_code", 0)) for code in model.get("codes", [])]
    for code in codes:
        if code not in _OPERATORS:
            raise UnsupportedError(f"{path}: operator {code}, which llmkit's models do not have")
    for entry in model.get("metadata", []):
        require(entry.get("buffer", 0) < len(buffers), "metadata without a buffer")
    require(all(0 <= i < len(buffers) for i in model.get("metadata_buffers", [])), "metadata without a buffer")
    for graph in graphs:
        tensors = graph.get("tensors", [])
        for tensor in tensors:
            _check_tensor(require, tensor, sizes)
        numbers = [*graph.get("inputs", []), *graph.get("outputs", [])]
        for operator in graph.get("operators", []):
            require(operator.get("code", 0) < len(codes), "an operator without a code")
            if operator.get("options_type", 0) not in _OPTIONS:
                raise UnsupportedError(f"{path}: options {operator['options_type']}, which llmkit's models do not have")
            require(("options" in operator) == bool(operator.get("options_type", 0)), "options without a type")
            numbers += operator.get("outputs", [])
            numbers += [i for i in operator.get("inputs", []) if i != -1]  # -1: left out
        require(all(0 <= i < len(tensors) for i in numbers), "an operator without its tensor")
    for signature in model.get("signatures", []):
        require(signature.get("graph", 0) < len(graphs) and "key" in signature, "a signature without a graph")
        n_tensors = len(graphs[signature.get("graph", 0)].get("tensors", []))
        for entry in (*signature.get("inputs", []), *signature.get("outputs", [])):
            require(entry.get("tensor", 0) < n_tensors and "name" in entry, "a signature without its tensor")


def _check_tensor(require: Any, tensor: _Table, sizes: list[int]) -> None:
    shape, number = tensor.get("shape", []), tensor.get("buffer", 0)
    require(number < len(sizes), "a tensor without a buffer")
    width = _BYTES.get(tensor.get("type", 0), 0)
    require(width > 0, f"a tensor of type {tensor.get('type', 0)}")
    require(len(shape) <= _MAX_RANK and all(0 <= n < _LARGEST for n in shape), f"a tensor of shape {shape[:9]}")
    n_bytes = prod(shape) * width
    require(n_bytes < _LARGEST << 2, f"a tensor of shape {shape}")
    require(not sizes[number] or sizes[number] == n_bytes, f"a constant of shape {shape} in {sizes[number]:,} bytes")
    quantization = tensor.get("quantization", {})
    scales, axis = quantization.get("scale", []), quantization.get("axis", 0)
    require(len(quantization.get("zero_point", [])) in (len(scales), 0), "scales without zero points")
    if len(scales) > 1:
        require(0 <= axis < len(shape) and len(scales) == shape[axis], f"{len(scales)} scales for shape {shape}")
