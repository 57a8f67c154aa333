"""SafeTensors headers, read strictly; tensor data is never touched.

Format: https://huggingface.co/docs/safetensors. A u64 (little endian) gives the header's length; the header
is one JSON object, tensor name -> {dtype, shape, data_offsets}, and `__metadata__` -> strings by name; the
tensors' bytes follow, without holes or overlaps, up to the end of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.formats.files import foreign_content, open_regular, read_exactly
from llmkit.formats.strictjson import json_kind, parse_json
from llmkit.types import TensorInfo

MAX_HEADER_BYTES: Final = 100_000_000

# Bits per element of every dtype that safetensors 0.8 knows. Those under 8 bits must fill whole bytes.
DTYPE_BITS: Final[dict[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

_NUMPY: Final = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What the header of `path` says; `tensors` is in the order of their bytes in the file."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a SafeTensors file; memory stays in proportion to the header's length.

    Raises FormatError, naming the tensor where there is one, when the file breaks any rule of the format.
    """
    file, size = open_regular(path)
    with file:
        start = read_exactly(file, min(size, 64), path)
        if foreign := foreign_content(start):
            raise FormatError(path, foreign)
        if start.startswith(b"GGUF"):
            raise FormatError(path, "this is a GGUF file, not SafeTensors")
        if size < 9:
            raise FormatError(path, f"{size} bytes are too few for a SafeTensors file")
        length = int.from_bytes(start[:8], "little")
        if length > MAX_HEADER_BYTES:
            limit = f"the format allows {MAX_HEADER_BYTES:,}"
            raise FormatError(path, f"header of {length:,} bytes, {limit}; not a SafeTensors file, or damaged")
        if length > size - 8:
            raise FormatError(path, f"header of {length:,} bytes in a file of {size:,} bytes; the file is truncated")
        if length == 0 or start[8:9] != b"{":
            raise FormatError(path, "the header does not start with '{'; not a SafeTensors file, or damaged")
        file.seek(8)
        header = parse_json(read_exactly(file, length, path), path, what="header")
    if not isinstance(header, dict):
        raise FormatError(path, f"header: expected a JSON object, found {json_kind(header)}")
    metadata = _checked_metadata(header.pop("__metadata__", {}), path)
    tensors = [_checked_tensor(name, entry, path, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    _check_coverage(tensors, path, 8 + length, size)
    return SafetensorsHeader(path, {info.name: info for info in tensors}, metadata)


def map_tensors(path: Path, dtypes: Sequence[str], *, writable: bool = False) -> dict[str, NDArray[Any]]:
    """The tensors by name, as arrays whose pages are read from the file when they are needed.

    dtypes: those that there may be, of F32, F16 and U8. writable: what is written to the arrays stays in memory.

    Raises FormatError as `read_header` does, and for another dtype.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, info in read_header(path).tensors.items():
        if info.dtype not in dtypes:
            raise FormatError(path, f"is {info.dtype}; expected {' or '.join(dtypes)}", tensor=name)
        found[name] = np.memmap(path, _NUMPY[info.dtype], "c" if writable else "r", info.offset, info.shape)
    return found


def _checked_metadata(metadata: Any, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise FormatError(path, f"header: __metadata__ must be an object, found {json_kind(metadata)}")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise FormatError(path, f"header: __metadata__[{key!r}] must be a string, found {json_kind(value)}")
    return metadata


def _checked_tensor(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
        raise FormatError(path, "the name holds half of a UTF-16 surrogate pair", tensor=name)
    if not isinstance(entry, dict):
        raise FormatError(path, f"expected an object, found {json_kind(entry)}", tensor=name)
    for field in ("dtype", "shape", "data_offsets"):
        if field not in entry:
            raise FormatError(path, f"{field} is missing", tensor=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        known = ", ".join(DTYPE_BITS)
        raise FormatError(path, f"unknown dtype {_excerpt(dtype)}; known: {known}", tensor=name)
    if not _are_u64(shape):
        raise FormatError(path, f"shape must be a list of non-negative integers, found {_excerpt(shape)}", tensor=name)
    if not _are_u64(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        problem = f"data_offsets must be [begin, end] with begin <= end, found {_excerpt(offsets)}"
        raise FormatError(path, problem, tensor=name)
    bits = DTYPE_BITS[dtype]
    for dim in shape:
        bits *= dim or 1  # a zero must not hide an overflow from other readers
        if bits >= 1 << 64:
            raise FormatError(path, f"the size of shape {_excerpt(shape)} overflows 64 bits", tensor=name)
    if 0 in shape:
        bits = 0
    begin, end = offsets
    if bits % 8:
        raise FormatError(path, f"{dtype} {_excerpt(shape)} does not fill whole bytes", tensor=name)
    if end - begin != bits // 8:
        problem = f"{dtype} {_excerpt(shape)} takes {bits // 8:,} bytes, but data_offsets span {end - begin:,}"
        raise FormatError(path, problem, tensor=name)
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _are_u64(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 64 for value in values)


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_coverage(tensors: list[TensorInfo], path: Path, data_start: int, size: int) -> None:
    """The tensors, sorted by offset, must cover the file from `data_start` to its end, each byte once."""
    position = data_start
    previous = None
    for info in tensors:
        if info.offset < position:
            assert previous is not None
            overlap = position - info.offset
            raise FormatError(path, f"overlaps tensor {previous!r} by {overlap:,} bytes", tensor=info.name)
        if info.offset > position:
            hole = info.offset - position
            raise FormatError(path, f"{hole:,} bytes before its data belong to no tensor", tensor=info.name)
        end = info.offset + info.nbytes
        if end > size:
            problem = f"its data ends at byte {end:,}, the file has {size:,}; the file is truncated or damaged"
            raise FormatError(path, problem, tensor=info.name)
        position, previous = end, info.name
    if position != size:
        raise FormatError(path, f"{size - position:,} bytes at the end belong to no tensor")
