"""A strict, memory-mapped reader of GGUF files.

Accepts what ggml's own reader accepts (gguf.cpp, gguf_init_from_file), and says precisely why it refuses. It
is stricter in these points: keys take at most 65,535 bytes, keys and tensor names must be non-empty valid UTF-8
without NUL, booleans must be 0 or 1, a zero dimension does not excuse an overflow of the others, and all tensor
data must be in the file.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.formats.files import foreign_content, open_regular, read_exactly
from llmkit.formats.gguf.cursor import Cursor
from llmkit.formats.gguf.limits import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    READABLE_VERSIONS,
    is_power_of_two,
    padded,
)
from llmkit.formats.gguf.metadata import Metadata, scan_metadata
from llmkit.formats.gguf.tensors import scan_tensors
from llmkit.formats.gguf.values import ValueType
from llmkit.types import TensorInfo

_INTEGERS: Final = frozenset(
    {
        ValueType.UINT8,
        ValueType.INT8,
        ValueType.UINT16,
        ValueType.INT16,
        ValueType.UINT32,
        ValueType.INT32,
        ValueType.UINT64,
        ValueType.INT64,
    }
)


@dataclass(frozen=True, slots=True)
class Split:
    """A file that is one part of several: part `number` (from 0) of `count`, with `n_tensors` in all parts."""

    number: int
    count: int
    n_tensors: int | None


class GGUFFile:
    """An open GGUF file; use it as a context manager, or call `close`.

    path, version, alignment (bytes), data_offset (bytes): as the file says.
    tensors: by name, in the order of the file; `dtype` is the TensorType's name, `offset` counts from the
        start of the file.
    metadata: `Value` by key, decoded when first used.
    split: which part of a split file this is, else None; `note` says it in words. `tensors` are this part's.
    """

    def __init__(
        self,
        data: mmap.mmap,
        path: Path,
        version: int,
        alignment: int,
        data_offset: int,
        tensors: dict[str, TensorInfo],
        metadata: Metadata,
        split: Split | None,
    ) -> None:
        self.path = path
        self.version = version
        self.alignment = alignment
        self.data_offset = data_offset
        self.tensors = tensors
        self.metadata = metadata
        self.split = split
        self._data: mmap.mmap | None = data

    @property
    def note(self) -> str | None:
        """What a reader of this file should know: that it is only a part, if it is."""
        if self.split is None:
            return None
        return f"part {self.split.number + 1} of {self.split.count} of a split GGUF file"

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key` as plain Python (int, float, bool, str, or a list of these), or `default`."""
        if key not in self.metadata:
            return default
        value = self.metadata[key]
        return list(value.data) if value.type == ValueType.ARRAY else value.data

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, uint8 [nbytes], read-only, straight from the mapping. Raises KeyError."""
        if self._data is None:
            raise ValueError(f"{self.path} is closed")
        info = self.tensors[name]
        return np.frombuffer(self._data, dtype=np.uint8, count=info.nbytes, offset=info.offset)

    def close(self) -> None:
        """Release the mapping. Views from `raw` stay valid: the mapping then lives until the last is gone."""
        if self._data is None:
            return
        data, self._data = self._data, None
        self.metadata.close()
        _unmap(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_gguf(path: Path | str) -> GGUFFile:
    """Open and check a GGUF file (version 2 or 3, little endian).

    All lengths, counts and offsets are checked here; values and tensor data are read when they are used.
    Raises FormatError when the file breaks a rule, UnsupportedError for tensor types that ggml removed.
    """
    path = Path(path)
    file, size = open_regular(path)
    with file:
        head = read_exactly(file, min(size, 64), path)
        if not head.startswith(MAGIC):
            found = f"it starts with {head[:4]!r}, not {MAGIC!r}" if head else "it is empty"
            raise FormatError(path, foreign_content(head) or f"not a GGUF file: {found}")
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FormatError(path, f"cannot be mapped ({size:,} bytes): {error.strerror or error}") from error
    try:
        return _read(path, data)
    except BaseException:
        _unmap(data)
        raise


def _unmap(data: mmap.mmap) -> None:
    with suppress(BufferError):  # views are alive; the mapping goes with the last of them
        data.close()


def _read(path: Path, data: mmap.mmap) -> GGUFFile:
    cursor = Cursor(path, data)
    cursor.take(len(MAGIC), "the magic")
    version = _checked_version(cursor)
    n_tensors = cursor.u64("the number of tensors")
    n_keys = cursor.u64("the number of metadata keys")
    metadata = scan_metadata(cursor, n_keys)
    alignment = _checked_alignment(metadata, path)
    split = _checked_split(metadata, path)
    declared = scan_tensors(cursor, n_tensors)
    # As in gguf.cpp: without tensors there is no data section, so nothing to align.
    data_offset = padded(cursor.position, alignment) if declared else cursor.position
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for tensor in declared:
        if tensor.offset != expected:
            problem = f"its data is said to start at {tensor.offset:,}, expected {expected:,} (after the tensor before)"
            raise FormatError(path, problem, tensor=tensor.name)
        expected += padded(tensor.nbytes, alignment)
        offset = data_offset + tensor.offset
        tensors[tensor.name] = TensorInfo(tensor.name, tensor.type.name, tensor.shape, path, offset, tensor.nbytes)
    _check_complete(tensors, path, cursor.size)
    return GGUFFile(data, path, version, alignment, data_offset, tensors, metadata, split)


def _checked_version(cursor: Cursor) -> int:
    version = cursor.u32("the version")
    if version in READABLE_VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in range(1, 1 << 16) and version & 0xFFFF == 0:
        problem = f"a big-endian GGUF file (version {swapped}); only little-endian files are readable"
    elif version == 1:
        problem = "GGUF version 1, which llama.cpp no longer reads either; get a newer file of this model"
    else:
        problem = f"GGUF version {version}; versions 2 and 3 are readable"
    raise FormatError(cursor.path, problem)


def _checked_alignment(metadata: Metadata, path: Path) -> int:
    if ALIGNMENT_KEY not in metadata:
        return DEFAULT_ALIGNMENT
    value = metadata[ALIGNMENT_KEY]
    if value.type != ValueType.UINT32:
        raise FormatError(path, f"{ALIGNMENT_KEY} must be of type UINT32, found {value.type.name}")
    alignment: int = value.data
    if not is_power_of_two(alignment):
        raise FormatError(path, f"{ALIGNMENT_KEY} must be a power of two, found {alignment}")
    return alignment


def _checked_split(metadata: Metadata, path: Path) -> Split | None:
    """The `split.*` keys that llama.cpp's gguf-split writes; a count of 0 or 1 means not split."""
    numbers: dict[str, int | None] = {}
    for key in ("split.count", "split.no", "split.tensors.count"):
        value = metadata.get(key)
        if value is not None and value.type not in _INTEGERS:
            raise FormatError(path, f"{key} must be an integer, found {value.type.name}")
        numbers[key] = None if value is None else value.data
    count, number = numbers["split.count"], numbers["split.no"]
    if count is None or count <= 1:
        return None
    if number is None or not 0 <= number < count:
        raise FormatError(path, f"split.no is {number}, expected 0 to {count - 1} (split.count is {count})")
    return Split(number, count, numbers["split.tensors.count"])


def _check_complete(tensors: dict[str, TensorInfo], path: Path, size: int) -> None:
    outside = [info for info in tensors.values() if info.offset + info.nbytes > size]
    if outside:
        end = max(info.offset + info.nbytes for info in outside)
        problem = (
            f"the file is truncated: it has {size:,} bytes, its tensors need {end:,}, so {end - size:,} are missing "
            f"(this tensor and {len(outside) - 1:,} others are incomplete); download or copy it again"
        )
        raise FormatError(path, problem, tensor=outside[0].name)
