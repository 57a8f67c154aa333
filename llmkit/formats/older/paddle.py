"""PaddlePaddle's parameters beside a program, `.pdiparams`: tensors one after another, whose names the program has.

Format: `SerializeToStream` of PaddlePaddle 3.3 (phi/core/framework/dense_tensor_serialize.cc), little-endian. A tensor:
u32 0; u64 number of levels (0 for weights, else that many lists, each a u64 length and its bytes); u32 0; i32 length of
a protobuf message `TensorDesc`, with the type in field 1 and the dimensions in field 2; the values. They lie in the
order of their names. Programs: JSON since version 3 (operators called "p" are the parameters), before that a protobuf
message `ProgramDesc` (`.pdmodel`, framework.proto), whose persistable variables are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.files import open_regular, read_exactly
from llmkit.formats.older.base import Cursor, TensorFile, by_name, n_bytes_of, open_cursor
from llmkit.formats.protobuf import BYTES, WireError, read_fields
from llmkit.formats.strictjson import read_json
from llmkit.types import TensorInfo

# framework.proto, `VarType.Type`.
_DTYPES: Final = {
    0: "BOOL", 1: "I16", 2: "I32", 3: "I64", 4: "F16", 5: "F32", 6: "F64", 20: "U8", 21: "I8", 22: "BF16", 23: "C64",
    24: "C128", 32: "F8_E4M3", 33: "F8_E5M2",
}  # fmt: skip
_NO_WEIGHTS: Final = (9, 10, 17)  # what is fed and fetched, and readers
_MAX_DESCRIPTION: Final = 1 << 12
_MAX_PROGRAM: Final = 64 << 20
_AWAY: Final = "move the program away to have the tensors numbered"
_OLD_NAMES: Final = {"__params__": "__model__"}  # of the first version

# Name and shape of a parameter; None where the program does not say, -1 for a dimension that it leaves open.
_Parameter = tuple[str, tuple[int, ...] | None]


def is_pdiparams(path: Path) -> bool:
    """Whether a file has the name of parameters beside a program."""
    return path.suffix.lower() == ".pdiparams" or path.name in _OLD_NAMES


def read_pdiparams(path: Path) -> TensorFile:
    """The tensors of a `.pdiparams` file, named by the program beside it, `X.json` or `X.pdmodel`, else numbered.

    Raises FormatError for damage and for a program that is not this file's, UnsupportedError for other types.
    """
    tensors: list[TensorInfo] = []
    with open_cursor(path) as cursor:
        while cursor.left:
            tensors.append(_tensor(cursor, f"tensor.{len(tensors)}"))
    if not tensors:
        raise FormatError(path, "is empty")
    program = _program_beside(path)
    if program is None:
        wanted = " or ".join(name.name for name in _programs(path))
        note = f"tensors are numbered in the order of the file: {wanted}, which has their names, is not beside it"
        return TensorFile("paddle", path, (path,), tuple(tensors), notes=(note,))
    parameters = _from_json(program) if program.suffix == ".json" else _from_protobuf(program)
    parameters.sort(key=lambda parameter: parameter[0])
    named = by_name(path, _named(path, program, tensors, parameters))
    return TensorFile("paddle", path, (path, program), named)


def _tensor(cursor: Cursor, name: str) -> TensorInfo:
    """The tensor at the cursor."""
    path = cursor.path
    begin = cursor.position
    if cursor.number("I") != 0:
        raise FormatError(path, f"no tensor begins at byte {begin:,}: no parameter file of PaddlePaddle, or damaged")
    for _ in range(cursor.number("Q")):
        cursor.skip(cursor.number("Q"))
    version, length = cursor.number("I"), cursor.number("i")
    if version != 0 or not 0 < length <= _MAX_DESCRIPTION:
        problem = (
            f"version {version} and a description of {length:,} bytes; expected 0 and at most {_MAX_DESCRIPTION:,}"
        )
        raise FormatError(path, f"{problem}; the file is damaged", tensor=name)
    type, dims = -1, []
    try:
        for field in read_fields(memoryview(cursor.take(length))):
            if field.number == 1:
                type = field.integer()
            elif field.number == 2 and field.wire == BYTES:
                raise FormatError(path, "has packed dimensions, which PaddlePaddle does not write", tensor=name)
            elif field.number == 2:
                dims.append(field.integer())
    except WireError as error:
        raise FormatError(path, f"has a damaged description: {error}", tensor=name) from error
    if type not in _DTYPES:
        raise UnsupportedError(f"{path}: tensor {name!r} has type {type}, which llmkit does not know")
    shape = tuple(dims)
    n_bytes = n_bytes_of(path, name, _DTYPES[type], shape)
    return TensorInfo(name, _DTYPES[type], shape, path, cursor.skip(n_bytes), n_bytes)


def _programs(path: Path) -> list[Path]:
    """Where the program may be."""
    if path.name in _OLD_NAMES:
        return [path.with_name(_OLD_NAMES[path.name])]
    return [path.with_suffix(".json"), path.with_suffix(".pdmodel")]


def _program_beside(path: Path) -> Path | None:
    return next((program for program in _programs(path) if program.is_file()), None)


def _named(
    path: Path, program: Path, tensors: Sequence[TensorInfo], parameters: Sequence[_Parameter]
) -> list[TensorInfo]:
    """The tensors with their names. Raises FormatError where the program does not fit them."""
    if len(tensors) != len(parameters):
        problem = f"holds {len(tensors):,} tensors, but {program} names {len(parameters):,}"
        raise FormatError(path, f"{problem}: they are not of one model; {_AWAY}")
    named = []
    for tensor, (name, shape) in zip(tensors, parameters, strict=True):
        if shape is not None and not _fits(tensor.shape, shape):
            problem = f"has the shape {list(tensor.shape)}, but {list(shape)} in {program}"
            raise FormatError(path, f"{problem}: they are not of one model; {_AWAY}", tensor=name)
        named.append(TensorInfo(name, tensor.dtype, tensor.shape, path, tensor.offset, tensor.nbytes))
    return named


def _fits(shape: tuple[int, ...], stated: tuple[int, ...]) -> bool:
    return len(shape) == len(stated) and all(wanted in (-1, size) for size, wanted in zip(shape, stated, strict=True))


def _from_json(program: Path) -> list[_Parameter]:
    """The parameters of a program of version 3: {"#": "p", "A": [.., .., .., name], "O": {"TT": {"D": [.., dims]}}}."""
    content = read_json(program, max_bytes=_MAX_PROGRAM)
    found: list[_Parameter] = []
    try:
        for region in content["program"]["regions"]:
            for block in region["blocks"]:
                found += [_json_parameter(operator) for operator in block["ops"] if operator["#"] == "p"]
    except (KeyError, IndexError, TypeError) as error:
        raise FormatError(program, f"is no program of PaddlePaddle ({error!r}); {_AWAY}") from error
    return found


def _json_parameter(operator: Any) -> _Parameter:
    name, shape = operator["A"][3], operator["O"]["TT"]["D"][1]
    if not isinstance(name, str) or not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise TypeError("a parameter without name or shape")
    return name, tuple(shape)


def _from_protobuf(program: Path) -> list[_Parameter]:
    """The persistable variables of a ProgramDesc: blocks = 1, vars = 3; name = 1, type = 2, persistable = 3."""
    file, size = open_regular(program)
    with file:
        if size > _MAX_PROGRAM:
            raise FormatError(program, f"has {size:,} bytes; a program may have {_MAX_PROGRAM:,}")
        content = memoryview(read_exactly(file, size, program))
    found: dict[str, _Parameter] = {}
    try:
        for block in read_fields(content):
            for variable in read_fields(block.message()) if block.number == 1 else ():
                if variable.number == 3:
                    parameter = _protobuf_parameter(variable.message())
                    if parameter is not None:
                        found.setdefault(parameter[0], parameter)
    except WireError as error:
        raise FormatError(program, f"is no program of PaddlePaddle ({error}); {_AWAY}") from error
    return list(found.values())


def _protobuf_parameter(variable: memoryview) -> _Parameter | None:
    """A variable, if it is stored: VarType has its kind in field 1, and in 3 a tensor's, with a TensorDesc in 1."""
    name, kind, persistable = "", -1, False
    shape: tuple[int, ...] | None = None
    for field in read_fields(variable):
        if field.number == 1:
            name = field.text()
        elif field.number == 3:
            persistable = field.boolean()
        elif field.number == 2:
            for part in read_fields(field.message()):
                if part.number == 1:
                    kind = part.integer()
                elif part.number == 3:
                    shape = _dims(part.message())
    return (name, shape) if persistable and kind not in _NO_WEIGHTS else None


def _dims(tensor: memoryview) -> tuple[int, ...] | None:
    for field in read_fields(tensor):
        if field.number == 1:
            return tuple(d.integer() for d in read_fields(field.message()) if d.number == 2)
    return None
