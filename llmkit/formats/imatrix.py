"""Importance-matrix files of llama.cpp: sums of squared activations per column, and how many tokens went into them.

Two forms are read, and the first is written (llama.cpp, tools/imatrix/imatrix.cpp). GGUF (`save_imatrix`): float32
tensors `<tensor>.in_sum2` [experts, columns] and `<tensor>.counts` [experts, 1]. To these llmkit may add
`<tensor>.in_products` [runs, width, width], which llama.cpp passes over: sums of the products of the activations of
each two columns, in runs of `width` columns, the last run filled up with zeros. Matrices that multiply the same
activations, and so have the same sums, share those of one of them. And the older binary form without a magic number,
little endian (`save_imatrix_legacy`):

    i32 number of entries
    per entry: i32 length of the name, the name, i32 calls, i32 number of values, that many float32
    optionally: i32 number of chunks, and after it i32 length of the text's name, that name

There a value is the mean times `calls`, and which values belong to which expert is not stored.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.formats.files import foreign_content, open_regular, read_exactly
from llmkit.formats.gguf import GGUFFile, ValueType, array, open_gguf, plan_layout, string, u32
from llmkit.formats.gguf.limits import MAGIC, MAX_ENTRIES, MAX_NAME_BYTES
from llmkit.formats.output import publish
from llmkit.types import TensorInfo, TensorType

SUMS_SUFFIX: Final = ".in_sum2"
COUNTS_SUFFIX: Final = ".counts"
PRODUCTS_SUFFIX: Final = ".in_products"
DATASETS_KEY: Final = "imatrix.datasets"
CHUNK_COUNT_KEY: Final = "imatrix.chunk_count"
CHUNK_SIZE_KEY: Final = "imatrix.chunk_size"

_I32: Final = struct.Struct("<i")
# An entry with a name of one byte and a single value.
_SMALLEST_ENTRY: Final = 4 + 1 + 4 + 4 + 4
_MAX_COUNT: Final = 1 << 62  # what is above is no count, and would not fit an int64 after rounding


@dataclass(frozen=True, slots=True)
class ColumnSums:
    """What the file holds about one tensor.

    sums: sums of squares, float32 [n, columns], finite and not negative. counts: tokens in each row of sums, int64 [n],
    not negative. `n` is the number of experts, or 1: for a plain matrix, or when all experts form one long row.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ImatrixFile:
    """A whole file: the names of the texts, how many chunks of how many tokens (0: not stored), and the sums.

    products: where the sums of products lie, by tensor; `read_products` reads them. They may be larger than the model.
    """

    path: Path
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int
    entries: Mapping[str, ColumnSums]
    products: Mapping[str, TensorInfo] = field(default_factory=dict)


def read_imatrix(path: Path | str) -> ImatrixFile:
    """Read either form. Raises FormatError, naming the entry, for whatever is damaged, missing or not a number."""
    path = Path(path)
    file, size = open_regular(path)
    with file:
        head = read_exactly(file, min(size, 64), path)
        if head.startswith(MAGIC):
            with open_gguf(path) as gguf:
                return _from_gguf(gguf)
        if problem := foreign_content(head):
            raise FormatError(path, problem)
        # The checks of counts and lengths go by the bytes that are there, so the whole file may be read at once:
        # these files are small, one float per column of the model.
        return _from_binary(path, head + read_exactly(file, size - len(head), path))


def _from_gguf(gguf: GGUFFile) -> ImatrixFile:
    path = gguf.path
    names = [name.removesuffix(SUMS_SUFFIX) for name in gguf.tensors if name.endswith(SUMS_SUFFIX)]
    counted = {name.removesuffix(COUNTS_SUFFIX) for name in gguf.tensors if name.endswith(COUNTS_SUFFIX)}
    if not names and not counted:
        kind = gguf.get("general.architecture") or gguf.get("general.type") or "unknown content"
        raise FormatError(
            path,
            f"not an importance matrix: a GGUF file ({kind}) without a tensor <name>{SUMS_SUFFIX}; llmkit imatrix "
            "computes one",
        )
    for key in (DATASETS_KEY, CHUNK_COUNT_KEY, CHUNK_SIZE_KEY):
        if key not in gguf.metadata:
            raise FormatError(path, f"metadata {key} is missing; llama-quantize refuses the file too")
    for name in sorted(counted.symmetric_difference(names)):
        there, lacking = (COUNTS_SUFFIX, SUMS_SUFFIX) if name in counted else (SUMS_SUFFIX, COUNTS_SUFFIX)
        raise FormatError(
            path, f"has {name + there!r}, but not {name + lacking!r}; the file is incomplete", tensor=name
        )
    entries = {name: _gguf_entry(gguf, name) for name in names}
    products = {
        name.removesuffix(PRODUCTS_SUFFIX): _products(gguf, name, entries)
        for name in gguf.tensors
        if name.endswith(PRODUCTS_SUFFIX)
    }
    chunks = _u32(gguf, CHUNK_COUNT_KEY), _u32(gguf, CHUNK_SIZE_KEY)
    return ImatrixFile(path, _datasets(gguf), *chunks, entries, products)


def _gguf_entry(gguf: GGUFFile, name: str) -> ColumnSums:
    if not name:
        raise FormatError(gguf.path, f"tensor {SUMS_SUFFIX!r} belongs to no tensor")
    sums, counts = (_floats(gguf, name, suffix) for suffix in (SUMS_SUFFIX, COUNTS_SUFFIX))
    if not counts.size or not sums.size or sums.size % counts.size:
        problem = (
            f"{sums.size:,} sums for {counts.size:,} counts; expected the same number of columns, at least one, each"
        )
        raise FormatError(gguf.path, problem, tensor=name)
    if not np.isfinite(counts).all() or counts.min() < 0 or counts.max() > _MAX_COUNT:
        bad = counts[~(np.isfinite(counts) & (counts >= 0) & (counts <= _MAX_COUNT))][0]
        raise FormatError(gguf.path, f"a count of {bad!s}; expected a number of tokens", tensor=name)
    # C's lround, which llama.cpp uses, takes halves away from zero; float64 holds every float32 plus a half.
    whole = np.floor(counts.astype(np.float64) + 0.5).astype(np.int64)
    return _checked(gguf.path, name, sums.reshape(counts.size, -1), whole)


def _products(gguf: GGUFFile, name: str, entries: Mapping[str, ColumnSums]) -> TensorInfo:
    info = gguf.tensors[name]
    entry = entries.get(name.removesuffix(PRODUCTS_SUFFIX))
    if entry is None:
        raise FormatError(gguf.path, f"has no {SUMS_SUFFIX!r} beside it; the file is incomplete", tensor=name)
    columns = entry.sums.size
    width = info.shape[-1]
    runs = -(-columns // width) if width else 0
    # Leading dimensions of 1 may be dropped.
    shape = (1,) * (3 - len(info.shape)) + info.shape
    if info.dtype != "F32" or shape != (runs, width, width) or entry.counts.size > 1:
        raise FormatError(
            gguf.path,
            f"products of {info.dtype} {info.shape}; expected float32 [runs, width, width] that cover the "
            f"{columns:,} columns of one matrix",
            tensor=name,
        )
    return replace(info, shape=shape)


def read_products(info: TensorInfo) -> NDArray[np.float32]:
    """The sums of products, float32 [runs, width, width]. Raises FormatError if the file has become shorter."""
    file, _ = open_regular(info.path)
    with file:
        file.seek(info.offset)
        raw = read_exactly(file, info.nbytes, info.path)
    return np.frombuffer(raw, "<f4").astype(np.float32).reshape(info.shape)


def _floats(gguf: GGUFFile, name: str, suffix: str) -> NDArray[np.float32]:
    info = gguf.tensors[name + suffix]
    if info.dtype != "F32":
        raise FormatError(gguf.path, f"{suffix[1:]} has type {info.dtype}, expected F32", tensor=name)
    return gguf.raw(info.name).view("<f4").astype(np.float32)  # a copy: the mapping is closed when this returns


def _datasets(gguf: GGUFFile) -> tuple[str, ...]:
    value = gguf.metadata[DATASETS_KEY]
    if value.element_type is not ValueType.STRING:
        raise FormatError(gguf.path, f"metadata {DATASETS_KEY} must be an array of strings, found {value.type.name}")
    return tuple(_printable(text) for text in value.data)


def _u32(gguf: GGUFFile, key: str) -> int:
    value = gguf.metadata[key]
    if value.type is not ValueType.UINT32:
        raise FormatError(gguf.path, f"metadata {key} must be UINT32, found {value.type.name}")
    number: int = value.data
    return number


def _printable(text: str) -> str:
    """`text` without the lone surrogates that stand for bytes which are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _Binary:
    """A position in the older form."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self.data) - self.position

    def take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self.remaining:
            problem = f"{what} takes {n_bytes:,} bytes, {self.remaining:,} are left; the file is truncated or damaged"
            raise FormatError(self.path, problem)
        self.position += n_bytes
        return self.data[self.position - n_bytes : self.position]

    def i32(self, what: str) -> int:
        number: int = _I32.unpack(self.take(4, what))[0]
        return number

    def length(self, what: str, least: int) -> int:
        number = self.i32(f"the {what}")
        if number < least:
            raise FormatError(self.path, f"the {what} is {number:,}, expected at least {least}; the file is damaged")
        return number


def _from_binary(path: Path, data: bytes) -> ImatrixFile:
    binary = _Binary(path, data)
    n_entries = _I32.unpack_from(data)[0] if len(data) >= _I32.size else 0
    if not 1 <= n_entries <= min(MAX_ENTRIES, len(data) // _SMALLEST_ENTRY):
        raise FormatError(
            path,
            "not an importance matrix: it is no GGUF file, and as llama.cpp's older form its first four bytes "
            f"would mean {n_entries:,} entries, which {len(data):,} bytes cannot hold",
        )
    binary.i32("the number of entries")
    entries: dict[str, ColumnSums] = {}
    for number in range(n_entries):
        name = _name(binary, number)
        if name in entries:
            raise FormatError(path, "occurs twice", tensor=name)
        calls = binary.length(f"number of calls of {name!r}", 0)
        n_values = binary.length(f"number of values of {name!r}", 1)
        raw = binary.take(4 * n_values, f"the values of {name!r}")
        sums = np.frombuffer(raw, "<f4").astype(np.float32).reshape(1, -1)
        # No calls means that the values are means already: llama-quantize takes them as they are.
        entries[name] = _checked(path, name, sums, np.array([max(calls, 1)], np.int64))
    n_chunks = 0
    datasets: tuple[str, ...] = ()
    if binary.remaining:
        n_chunks = binary.length("number of chunks", 0)
        if binary.remaining:
            datasets = _dataset(binary)
    if binary.remaining:
        raise FormatError(path, f"{binary.remaining:,} bytes follow after the end; the file is damaged")
    return ImatrixFile(path, datasets, n_chunks, 0, entries)


def _name(binary: _Binary, number: int) -> str:
    what = f"length of the name of entry {number}"
    n_bytes = binary.length(what, 1)
    if n_bytes > MAX_NAME_BYTES:
        problem = f"the {what} is {n_bytes:,}; tensor names take at most {MAX_NAME_BYTES} bytes"
        raise FormatError(binary.path, problem)
    raw = binary.take(n_bytes, f"the name of entry {number}")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = "\0"
    if "\0" in name:
        raise FormatError(binary.path, f"the name of entry {number} is not UTF-8 text: {raw!r}")
    return name


def _dataset(binary: _Binary) -> tuple[str, ...]:
    n_bytes = binary.length("length of the text's name", 0)
    text = binary.take(n_bytes, "the text's name").decode("utf-8", "replace")
    return (text,) if text else ()


def _checked(path: Path, name: str, sums: NDArray[Any], counts: NDArray[np.int64]) -> ColumnSums:
    bad = np.argwhere(~(np.isfinite(sums) & (sums >= 0)))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        expert = f"expert {row}, " if len(sums) > 1 else ""
        problem = f"{expert}column {column}: a sum of squares of {sums[row, column]!s}; the file cannot be used"
        raise FormatError(path, problem, tensor=name)
    return ColumnSums(sums, counts)


def write_imatrix(
    path: Path, file: ImatrixFile, products: Mapping[str, NDArray[np.float32]] | None = None, *, overwrite: bool
) -> None:
    """Write the GGUF form to `path`, entries in the order of their names, as llama-imatrix does.

    products: sums of products to add, float32 [runs, width, width], by tensor.

    Raises OutputError, and UnsupportedError for a name that is too long for GGUF with its suffix.
    """
    metadata = {
        "general.type": string("imatrix"),
        DATASETS_KEY: array(ValueType.STRING, file.datasets),
        CHUNK_COUNT_KEY: u32(file.n_chunks),
        CHUNK_SIZE_KEY: u32(file.chunk_size),
    }
    arrays = {}
    for name, entry in sorted(file.entries.items()):
        # ggml drops leading dimensions of 1, so a plain matrix has one-dimensional tensors.
        single = len(entry.counts) == 1
        arrays[name + SUMS_SUFFIX] = entry.sums[0] if single else entry.sums
        arrays[name + COUNTS_SUFFIX] = entry.counts.astype("<f4").reshape(1 if single else (-1, 1))
    for name, sums in sorted((products or {}).items()):
        arrays[name + PRODUCTS_SUFFIX] = sums
    layout = plan_layout(metadata, [(name, TensorType.F32, values.shape) for name, values in arrays.items()])
    with publish(path, layout.total_bytes, overwrite=overwrite) as output:
        output.write_at(layout.header, 0)
        for values, offset in zip(arrays.values(), layout.offsets, strict=True):
            output.write_at(np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8).data, offset)
