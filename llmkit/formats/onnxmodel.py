"""Reading the header of an ONNX model: its inputs, outputs and where its weights lie; no weight is read.

Format: onnx/onnx.proto3 of ONNX. Weights are within the file, or in files beside it ("external data"), which must be
inside the model's folder: a path that leads out of it is refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Final

from llmkit.errors import FormatError
from llmkit.formats.files import open_regular
from llmkit.formats.protobuf import Field, WireError, read_fields

# TensorProto.DataType: name, and bits of an element.
DTYPES: Final = {
    1: ("FLOAT", 32), 2: ("UINT8", 8), 3: ("INT8", 8), 4: ("UINT16", 16), 5: ("INT16", 16), 6: ("INT32", 32),
    7: ("INT64", 64), 9: ("BOOL", 8), 10: ("FLOAT16", 16), 11: ("DOUBLE", 64), 12: ("UINT32", 32), 13: ("UINT64", 64),
    16: ("BFLOAT16", 16), 17: ("FLOAT8E4M3FN", 8), 18: ("FLOAT8E4M3FNUZ", 8), 19: ("FLOAT8E5M2", 8),
    20: ("FLOAT8E5M2FNUZ", 8), 21: ("UINT4", 4), 22: ("INT4", 4), 23: ("FLOAT4E2M1", 4), 24: ("FLOAT8E8M0", 8),
}  # fmt: skip
# Operators of ONNX Runtime with quantised matrices: the places of codes, scales and zero points among their inputs.
_QUANTIZED: Final = {
    "MatMulNBits": ((1, 2, 3),),
    "GatherBlockQuantized": ((0, 2, 3),),
    "QMoE": ((2, 3, 11), (5, 6, 12), (8, 9, 13)),
}
_EXTERNAL: Final = 1  # TensorProto.DataLocation
_MAX_BYTES: Final = 1 << 31  # of a protobuf message


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """A weight: `location` is the file beside the model that it lies in, None if it is within the model."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str | None = None
    offset: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Blocks:
    """A quantised matrix of the graph: the names of its arrays, and how many bits a weight and weights a scale have."""

    codes: str
    scales: str
    zero_points: str | None
    bits: int
    block_size: int


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """`inputs` and `outputs` by name, with their shapes: names stand for sizes that vary, None for unknown ones.

    `name` is the graph's. `operators` counts the nodes of each kind; `blocks` are the quantised matrices that they
    multiply by.
    """

    path: Path
    name: str
    producer: str
    opsets: dict[str, int]
    inputs: dict[str, tuple[int | str | None, ...]]
    outputs: dict[str, tuple[int | str | None, ...]]
    tensors: dict[str, OnnxTensor]
    operators: dict[str, int]
    blocks: tuple[Blocks, ...]

    @property
    def n_weights(self) -> int:
        """Numbers of the model, those of quantised matrices too; what two nodes share counts once."""
        parts = {name for b in self.blocks for name in (b.codes, b.scales, b.zero_points) if name}
        count = sum(prod(t.shape) for t in self.tensors.values() if t.location is not None and t.name not in parts)
        codes = {(t.location, t.offset): (t, b) for b in self.blocks if (t := self.tensors.get(b.codes)) is not None}
        return count + sum(8 * prod(t.shape) // max(1, b.bits) for t, b in codes.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that its weights lie in, besides itself."""
        names = dict.fromkeys(t.location for t in self.tensors.values() if t.location is not None)
        return tuple(self.path.parent / name for name in names)


def read_onnx(path: Path) -> OnnxModel:
    """Read the model at `path` and check its weights' places.

    Raises FormatError for what is no ONNX model, for weights outside the folder, and for files of weights that are
    missing or too short.
    """
    file, size = open_regular(path)
    with file:
        if not 0 < size < _MAX_BYTES:
            raise FormatError(path, f"{size:,} bytes; an ONNX model has between 1 and {_MAX_BYTES:,}")
        # Closed when the last view of it goes, which an error's traceback may hold.
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        model = _model(path, view)
    except WireError as error:
        raise FormatError(path, f"is no ONNX model, or damaged: {error}") from None
    _check_places(model)
    return model


def _model(path: Path, message: memoryview) -> OnnxModel:
    producer, graph = "", None
    opsets: dict[str, int] = {}
    for field in read_fields(message):
        if field.number == 2:
            producer = field.text()
        elif field.number == 8:
            parts = _scalars(field.message())
            opsets[_text(parts.get(1))] = _integer(parts.get(2))
        elif field.number == 7:
            graph = field.message()
    if graph is None:
        raise WireError("it has no graph")
    inputs: dict[str, tuple[int | str | None, ...]] = {}
    outputs: dict[str, tuple[int | str | None, ...]] = {}
    tensors: dict[str, OnnxTensor] = {}
    operators: dict[str, int] = {}
    blocks: list[Blocks] = []
    name = ""
    for field in read_fields(graph):
        if field.number == 2:
            name = field.text()
        elif field.number == 5:
            tensor = _tensor(field.message())
            if tensor.name in tensors:
                raise WireError(f"two tensors are called {tensor.name!r}")
            tensors[tensor.name] = tensor
        elif field.number in (11, 12):
            value, shape = _value(field.message())
            (inputs if field.number == 11 else outputs)[value] = shape
        elif field.number == 1:
            operator, found = _node(field.message())
            operators[operator] = operators.get(operator, 0) + 1
            blocks += found
    return OnnxModel(path, name, producer, opsets, inputs, outputs, tensors, operators, tuple(blocks))


def _node(message: memoryview) -> tuple[str, list[Blocks]]:
    """The operator of a node, and the quantised matrices among its inputs (NodeProto)."""
    operator, inputs, numbers = "", [], {}
    for field in read_fields(message):
        if field.number == 1:
            inputs.append(field.text())
        elif field.number == 4:
            operator = field.text()
        elif field.number == 5:
            parts = _scalars(field.message())
            if 3 in parts:
                numbers[_text(parts.get(1))] = parts[3].integer()
    found = []
    bits = numbers.get("bits", numbers.get("expert_weight_bits", 4))
    for places in _QUANTIZED.get(operator, ()):
        codes, scales, zero_points = (inputs[i] if i < len(inputs) else "" for i in places)
        if codes and scales:
            found.append(Blocks(codes, scales, zero_points or None, bits, numbers.get("block_size", 0)))
    return operator, found


def _scalars(message: memoryview) -> dict[int, Field]:
    return {field.number: field for field in read_fields(message)}


def _text(field: Field | None) -> str:
    return "" if field is None else field.text()


def _integer(field: Field | None) -> int:
    return 0 if field is None else field.integer()


def _tensor(message: memoryview) -> OnnxTensor:
    shape: list[int] = []
    name, code, external, places = "", 0, False, {}
    for field in read_fields(message):
        if field.number == 1:
            shape += _integers(field)
        elif field.number == 2:
            code = field.integer()
        elif field.number == 8:
            name = field.text()
        elif field.number == 13:
            parts = _scalars(field.message())
            places[_text(parts.get(1))] = _text(parts.get(2))
        elif field.number == 14:
            external = field.integer() == _EXTERNAL
    dtype, bits = DTYPES.get(code, (f"type {code}", 0))
    if any(size < 0 for size in shape):
        raise WireError(f"tensor {name!r} has shape {shape}")
    if not external:
        return OnnxTensor(name, dtype, tuple(shape))
    nbytes = -(-prod(shape) * bits // 8)
    offset, length = (_number(name, places, key, default) for key, default in (("offset", 0), ("length", nbytes)))
    if length != nbytes and bits:
        raise WireError(f"tensor {name!r} has {length:,} bytes, and its type and shape make {nbytes:,}")
    return OnnxTensor(name, dtype, tuple(shape), places.get("location", ""), offset, length)


def _integers(field: Field) -> Iterator[int]:
    """A repeated int64, packed or not."""
    if isinstance(field.payload, int):
        yield field.integer()
        return
    # Packed: varints one after the other, each read as the value of a made-up field.
    data = field.message()
    begin = 0
    for end in range(len(data)):
        if data[end] < 0x80:
            (one,) = read_fields(memoryview(b"\x08" + bytes(data[begin : end + 1])))
            yield one.integer()
            begin = end + 1
    if begin != len(data):
        raise WireError("ends within a number")


def _number(name: str, places: dict[str, str], key: str, default: int) -> int:
    text = places.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise WireError(f"tensor {name!r}: {key} {text[:40]!r} is no number")
    return int(text)


def _value(message: memoryview) -> tuple[str, tuple[int | str | None, ...]]:
    """Name and shape of an input or output (ValueInfoProto)."""
    parts = _scalars(message)
    shape: list[int | str | None] = []
    type = _scalars(parts[2].message()) if 2 in parts else {}
    tensor = _scalars(type[1].message()) if 1 in type else {}
    for dimension in read_fields(tensor[2].message()) if 2 in tensor else ():
        of = _scalars(dimension.message())
        shape.append(_integer(of[1]) if 1 in of else _text(of[2]) if 2 in of else None)
    return _text(parts.get(1)), tuple(shape)


def _check_places(model: OnnxModel) -> None:
    folder = model.path.parent
    sizes: dict[str, int] = {}
    for tensor in model.tensors.values():
        if tensor.location is None:
            continue
        if tensor.location not in sizes:
            sizes[tensor.location] = _size_of(model.path, folder, tensor)
        end = tensor.offset + tensor.nbytes
        if end > sizes[tensor.location]:
            raise FormatError(
                folder / tensor.location,
                f"has {sizes[tensor.location]:,} bytes, and {model.path.name} wants bytes up to {end:,}: the file is "
                "incomplete; copy it again",
                tensor=tensor.name,
            )


def _size_of(model: Path, folder: Path, tensor: OnnxTensor) -> int:
    """The size of the file that `tensor` lies in; FormatError if it is not one inside the folder."""
    location = tensor.location or ""
    path = PurePosixPath(location)
    real = (folder / location).resolve() if location and "\0" not in location else folder
    if not location or path.is_absolute() or ".." in path.parts or not real.is_relative_to(folder.resolve()):
        raise FormatError(
            model, f"has weights in {location[:200]!r}, which is outside its folder: refused", tensor=tensor.name
        )
    if not real.is_file():
        raise FormatError(model, f"its weights are in {location}, which is not there; copy it too", tensor=tensor.name)
    return real.stat().st_size
