"""TensorFlow's checkpoints: `X.index` says what tensors there are, `X.data-00000-of-00002` and so on hold their bytes.

Format: tensorflow/core/protobuf/tensor_bundle.proto and util/tensor_bundle. The index is a table of messages
`BundleEntryProto` by tensor; under the empty key is a `BundleHeaderProto`. A variable that was partitioned has an entry
with its slices, and one for each, under a key that is made of its name and the slice (util/saved_tensor_slice_util.cc).

They are not read through TensorFlow: it ends the whole process on an index whose shapes cannot be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.older.base import WIDTHS, TensorFile, Values, n_bytes_of, read_range
from llmkit.formats.older.tables import MAGIC, read_table
from llmkit.formats.protobuf import WireError, read_fields
from llmkit.types import TensorInfo

_DATA: Final = re.compile(r"(?P<prefix>.+)\.data-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})")
# types.proto, `DataType`.
_DTYPES: Final = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL", 14: "BF16", 17: "U16",
    18: "C128", 19: "F16", 22: "U32", 23: "U64", 24: "F8_E5M2", 25: "F8_E4M3",
}  # fmt: skip
_STRING: Final = 7
_MOST_NAMED: Final = 5
_MAX_FILES: Final = 99_999  # by their names

# The beginning and length along each axis; a length of -1 is all of it.
_Slice = tuple[tuple[int, int], ...]


class _Entry(NamedTuple):
    """A BundleEntryProto. `slices` are those of a partitioned variable, which has no bytes of its own."""

    dtype: int
    shape: tuple[int, ...]
    file: int
    offset: int
    size: int
    slices: tuple[_Slice, ...]


def index_of(path: Path) -> Path | None:
    """The index of the checkpoint that `path` is a file of, or the beginning of whose files' names; None if of none."""
    data = _DATA.fullmatch(path.name)
    if data is not None and path.is_file():
        index = path.with_name(f"{data['prefix']}.index")
        return index if index.is_file() else None
    index = path if path.suffix == ".index" else path.with_name(f"{path.name}.index")
    if (index != path and path.exists()) or not index.is_file():
        return None
    return index if _has_data(index) or _ends_as_a_table(index) else None


def read_tensorflow(index: Path) -> TensorFile:
    """The tensors of a checkpoint by name, as `tf.train.list_variables` has them; texts are left out with a note.

    Raises FormatError for damage or missing files, UnsupportedError for big-endian checkpoints.
    """
    entries, n_files = _entries(index)
    files = _data_files(index, n_files)
    sizes = [file.stat().st_size for file in files]
    tensors: list[TensorInfo] = []
    values: dict[str, Values] = {}
    others: list[str] = []
    for key, entry in entries.items():
        if key.startswith(b"\0"):
            continue  # a slice
        name = _name(index, key)
        if entry.dtype not in _DTYPES:
            others.append(f"{name!r} ({'texts' if entry.dtype == _STRING else f'type {entry.dtype}'})")
        elif entry.slices:
            partitioned = _partitioned(index, name, entry, entries, files, sizes)
            n_bytes = n_bytes_of(index, name, _DTYPES[entry.dtype], entry.shape)
            first = partitioned.parts[0]
            tensors.append(TensorInfo(name, _DTYPES[entry.dtype], entry.shape, first.path, first.offset, n_bytes))
            values[name] = partitioned
        else:
            tensors.append(_tensor(index, name, entry, files, sizes))
    tensors.sort(key=lambda tensor: (tensor.path, tensor.offset))
    listed = ", ".join(others[:_MOST_NAMED]) + (", ..." if len(others) > _MOST_NAMED else "")
    notes = (f"entries that are no tensors of numbers are left out: {listed}",) if others else ()
    return TensorFile("tensorflow", index, (index, *files), tuple(tensors), values, notes)


def _entries(index: Path) -> tuple[dict[bytes, _Entry], int]:
    """The entries by key, and the number of files that the values are in."""
    found: dict[bytes, _Entry] = {}
    header = {1: 0, 2: 0}
    try:
        for key, value in read_table(index):
            if key:
                found[key] = _entry(value)
            else:
                header |= {field.number: field.integer() for field in read_fields(value) if field.number in header}
    except WireError as error:
        raise FormatError(index, f"has a damaged entry: {error}") from error
    if header[2] != 0:
        raise UnsupportedError(f"{index}: is a big-endian checkpoint; save it anew on a little-endian machine")
    return found, header[1]


def _entry(message: memoryview) -> _Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0}
    shape: tuple[int, ...] = ()
    slices: list[_Slice] = []
    for field in read_fields(message):
        if field.number in numbers:
            numbers[field.number] = field.integer()
        elif field.number == 2:
            dims = (dim.message() for dim in read_fields(field.message()) if dim.number == 2)
            shape = tuple(sum(size.integer() for size in read_fields(dim) if size.number == 1) for dim in dims)
        elif field.number == 7:
            extents = (extent.message() for extent in read_fields(field.message()) if extent.number == 1)
            slices.append(tuple(map(_extent, extents)))
    return _Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], tuple(slices))


def _extent(message: memoryview) -> tuple[int, int]:
    start, length = 0, -1
    for field in read_fields(message):
        if field.number == 1:
            start = field.integer()
        elif field.number == 2:
            length = field.integer()
    return start, length


def _name(index: Path, key: bytes) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(index, f"a name is not valid UTF-8: {key[:40]!r}") from None


def _tensor(index: Path, name: str, entry: _Entry, files: Sequence[Path], sizes: Sequence[int]) -> TensorInfo:
    """Where the bytes of an entry lie, checked."""
    dtype = _DTYPES[entry.dtype]
    n_bytes = n_bytes_of(index, name, dtype, entry.shape)
    if entry.size != n_bytes:
        problem = f"{dtype} {list(entry.shape)} takes {n_bytes:,} bytes, but {entry.size:,} are stored"
        raise FormatError(index, f"{problem}; the file is damaged", tensor=name)
    if not 0 <= entry.file < len(files):
        raise FormatError(index, f"is in file number {entry.file} of {len(files)}; the file is damaged", tensor=name)
    if not 0 <= entry.offset <= sizes[entry.file] - n_bytes:
        problem = f"its bytes {entry.offset:,} to {entry.offset + n_bytes:,} are not all there"
        raise FormatError(files[entry.file], f"{problem}; the file is truncated or damaged", tensor=name)
    return TensorInfo(name, dtype, entry.shape, files[entry.file], entry.offset, n_bytes)


def _partitioned(
    index: Path,
    name: str,
    whole: _Entry,
    entries: Mapping[bytes, _Entry],
    files: Sequence[Path],
    sizes: Sequence[int],
) -> _Partitioned:
    """A variable in slices, each checked to be within it, and all together to be as large."""
    parts, places, stored = [], [], 0
    for extents in whole.slices:
        entry = entries.get(slice_key(name, extents))
        if entry is None:
            raise FormatError(index, f"has no entry for its slice {list(extents)}; the file is damaged", tensor=name)
        if len(extents) != len(whole.shape) or not extents:
            raise FormatError(index, f"has a slice {list(extents)} of other dimensions", tensor=name)
        place = []
        for (start, length), size in zip(extents, whole.shape, strict=True):
            stop = size if length == -1 else start + length
            if not 0 <= start <= stop <= size:
                raise FormatError(index, f"its slice {list(extents)} is not within {list(whole.shape)}", tensor=name)
            place.append(slice(start, stop))
        if entry.shape != tuple(axis.stop - axis.start for axis in place) or entry.dtype != whole.dtype:
            raise FormatError(
                index, f"its slice {list(extents)} is stored as another; the file is damaged", tensor=name
            )
        parts.append(_tensor(index, name, entry, files, sizes))
        places.append(tuple(place))
        stored += prod(entry.shape)
    if stored != prod(whole.shape):
        problem = f"has {prod(whole.shape):,} elements, but its slices have {stored:,}"
        raise FormatError(index, f"{problem}; the file is damaged", tensor=name)
    return _Partitioned(whole.shape, tuple(parts), tuple(places))


@dataclass(frozen=True, slots=True)
class _Partitioned:
    """The values of a variable of `shape`, whose slice `places[i]` is the tensor `parts[i]`."""

    shape: tuple[int, ...]
    parts: tuple[TensorInfo, ...]
    places: tuple[tuple[slice, ...], ...]

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """See `Values`."""
        if not count:
            return np.empty(0, np.uint8)
        width = WIDTHS[self.parts[0].dtype]
        row_bytes = prod(self.shape[1:]) * width
        low, high = first // row_bytes, -(-(first + count) // row_bytes)
        found = np.zeros((high - low, *self.shape[1:]), f"V{width}")
        for part, place in zip(self.parts, self.places, strict=True):
            begin, end = max(low, place[0].start), min(high, place[0].stop)
            row = part.nbytes // max(1, part.shape[0])
            if begin < end and row:
                where = part.offset + (begin - place[0].start) * row
                stored = read_range(part.path, part.name, where, (end - begin) * row).view(found.dtype)
                found[begin - low : end - low, *place[1:]] = stored.reshape(end - begin, *part.shape[1:])
        skipped = first - low * row_bytes
        return found.reshape(-1).view(np.uint8)[skipped : skipped + count]


def slice_key(name: str, extents: _Slice) -> bytes:
    """The key of a slice: 0, the name, the number of dimensions, and of each its beginning and length.

    They are written so that the bytes have the order of the values (tensorflow/core/lib/strings/ordered_code.cc).
    """
    escaped = name.encode().replace(b"\0", b"\0\xff") + b"\0\1"
    rank = len(extents).to_bytes((len(extents).bit_length() + 7) // 8, "big")
    numbers = b"".join(_signed(number) for extent in extents for number in extent)
    return b"\0" + escaped + bytes([len(rank)]) + rank + numbers


def _signed(number: int) -> bytes:
    """As many bytes as the first bits that are equal: n bytes hold numbers of 7 n - 1 bits."""
    magnitude = number if number >= 0 else ~number
    n_bytes = max(1, -(-(magnitude.bit_length() + 1) // 7))
    plain = number.to_bytes(max(n_bytes, 10), "big", signed=True)[-n_bytes:]
    header = ((1 << n_bytes) - 1) << (8 * n_bytes - n_bytes)
    return (int.from_bytes(plain, "big") ^ header).to_bytes(n_bytes, "big")


def _has_data(index: Path) -> bool:
    """Whether a file of values lies beside an index."""
    prefix = index.name.removesuffix(".index")
    found = (_DATA.fullmatch(path.name) for path in index.parent.iterdir())
    return any(data is not None and data["prefix"] == prefix for data in found)


def _data_files(index: Path, count: int) -> list[Path]:
    """The files of values in order. Raises FormatError if one is missing."""
    if not 0 < count <= _MAX_FILES:
        raise FormatError(index, f"says that its values are in {count:,} files; the file is damaged")
    prefix = index.name.removesuffix(".index")
    files = [index.with_name(f"{prefix}.data-{number:05d}-of-{count:05d}") for number in range(count)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FormatError(index, f"its values are missing: {', '.join(missing[:3])}; put them into the same folder")
    return files


def _ends_as_a_table(index: Path) -> bool:
    try:
        with index.open("rb") as file:
            file.seek(max(0, index.stat().st_size - len(MAGIC)))
            return file.read() == MAGIC
    except OSError:
        return False
