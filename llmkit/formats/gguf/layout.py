"""The layout of a GGUF file to be written: its header, and where each tensor goes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmkit.errors import UnsupportedError
from llmkit.formats.gguf.limits import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ENTRIES,
    MAX_KEY_BYTES,
    WRITTEN_VERSION,
    is_power_of_two,
    padded,
)
from llmkit.formats.gguf.tensors import name_problem, shape_problem
from llmkit.formats.gguf.values import Value, encode_string, encode_value, u32
from llmkit.types import TensorType, tensor_bytes

_MAX_ALIGNMENT: Final = 1 << 20  # enough for any page size, and the header is padded to it in memory


@dataclass(frozen=True, slots=True)
class GGUFLayout:
    """A GGUF v3 file but for its weights.

    header: all bytes up to the data section, padding included.
    offsets: where each tensor's bytes go, counted from the start of the file, in the order given.
    total_bytes: the length of the file, padding after the last tensor included. All padding is zero.
    """

    header: bytes
    offsets: tuple[int, ...]
    total_bytes: int


def plan_layout(
    metadata: Mapping[str, Value],
    tensors: Sequence[tuple[str, TensorType, tuple[int, ...]]],
    alignment: int = DEFAULT_ALIGNMENT,
) -> GGUFLayout:
    """Lay out a GGUF v3 file of `metadata` and `tensors` (name, type, shape with the slowest dimension first).

    `general.alignment` is added when `alignment` is not the default of 32. Everything that readers require is
    checked here. Raises UnsupportedError, naming the key or tensor that GGUF cannot hold, and ValueError for an
    alignment that is not a power of two up to 1 MiB.
    """
    if not is_power_of_two(alignment) or alignment > _MAX_ALIGNMENT:
        raise ValueError(f"alignment must be a power of two up to {_MAX_ALIGNMENT:,}, not {alignment}")
    metadata = _with_alignment(metadata, alignment)
    for count, what in ((len(metadata), "metadata keys"), (len(tensors), "tensors")):
        if count > MAX_ENTRIES:
            raise UnsupportedError(f"{count:,} {what}; llmkit writes at most {MAX_ENTRIES:,}")
    parts = [struct.pack("<4sIQQ", MAGIC, WRITTEN_VERSION, len(tensors), len(metadata))]
    parts += [_encode_pair(key, value) for key, value in metadata.items()]
    sizes = [_checked_size(name, type, shape) for name, type, shape in tensors]
    _check_unique([name for name, _, _ in tensors])
    relative: list[int] = []
    end = 0
    for (name, type, shape), size in zip(tensors, sizes, strict=True):
        dims = shape[::-1]  # stored fastest dimension first
        parts.append(encode_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type, end))
        relative.append(end)
        end += padded(size, alignment)
    header_bytes = sum(map(len, parts))
    data_offset = padded(header_bytes, alignment)
    parts.append(bytes(data_offset - header_bytes))
    if data_offset + end >= 1 << 63:
        raise UnsupportedError("the tensors take 2^63 bytes or more in all")
    return GGUFLayout(b"".join(parts), tuple(data_offset + offset for offset in relative), data_offset + end)


def _with_alignment(metadata: Mapping[str, Value], alignment: int) -> Mapping[str, Value]:
    given = metadata.get(ALIGNMENT_KEY)
    if given is not None:
        if given != u32(alignment):
            raise UnsupportedError(f"metadata {ALIGNMENT_KEY!r} is {given.data!r}, but the layout uses u32 {alignment}")
        return metadata
    return metadata if alignment == DEFAULT_ALIGNMENT else {**metadata, ALIGNMENT_KEY: u32(alignment)}


def _encode_pair(key: str, value: Value) -> bytes:
    if not key:
        raise UnsupportedError("a metadata key is empty")
    try:
        if "\0" in key:
            raise ValueError("a key must not hold a NUL character")
        n_bytes = len(key.encode("utf-8"))
        if n_bytes > MAX_KEY_BYTES:
            raise ValueError(f"a key of {n_bytes:,} bytes; GGUF allows {MAX_KEY_BYTES:,}")
        return encode_string(key) + encode_value(value)
    except (TypeError, ValueError) as error:
        raise UnsupportedError(f"metadata {key[:200]!r}: {error}") from error


def _checked_size(name: str, type: TensorType, shape: tuple[int, ...]) -> int:
    try:
        problem = name_problem(name)
    except UnicodeEncodeError:
        problem = f"tensor name {name!r} is not valid Unicode"
    if problem:
        raise UnsupportedError(f"GGUF cannot hold this tensor: {problem}")
    if problem := shape_problem(type, shape):
        raise UnsupportedError(f"GGUF cannot hold tensor {name!r}: {problem}")
    return tensor_bytes(type, shape)


def _check_unique(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UnsupportedError(f"GGUF cannot hold two tensors of the same name: {name!r}")
        seen.add(name)
