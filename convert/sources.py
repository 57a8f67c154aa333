"""Reading the weights of a chunk: from the files of checkpoints and GGUF files, whatever type they are stored in.

Files are read with `pread`: a truncated input is then an error and not a fatal signal, and mapped pages do not count as
memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.chunks import BAND, Buffers, Chunk
from llmkit.convert.packed.reader import Inputs, Reader, read_at, read_into
from llmkit.convert.packed.views import read_view
from llmkit.convert.plan import Computed, PlannedTensor, Stored
from llmkit.convert.transforms import Map, Matrix
from llmkit.errors import FormatError, NonFiniteError
from llmkit.quantize.schemes import WeightType, scheme
from llmkit.types import TensorInfo, TensorType, layout_of, stored_type, tensor_bytes


@contextmanager
def open_inputs(tensors: Sequence[PlannedTensor]) -> Iterator[Inputs]:
    """Open every file that the tensors are read from. Raises FormatError."""
    inputs: dict[Path, int] = {}
    stored = (part for t in tensors for part in t.parts if isinstance(part, Stored))
    paths = dict.fromkeys(file.path for part in stored for file in part.files)
    with ExitStack() as stack:
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise FormatError(path, f"cannot be read: {error.strerror}") from error
            stack.callback(os.close, descriptor)
            inputs[path] = descriptor
        yield inputs


def read_rows(chunk: Chunk, inputs: Inputs, buffers: Buffers) -> NDArray[np.uint8]:
    """The chunk's rows as the source stores them, in the target's order, uint8 [n_rows, source_row_bytes]."""
    columns = chunk.tensor.matrix[1]
    part = chunk.part
    first = chunk.first_row - chunk.part_row
    if isinstance(part, Computed):
        values = np.array(part.values[first * columns : (first + chunk.n_rows) * columns], np.float32)
        return values.view(np.uint8).reshape(chunk.n_rows, -1)
    rows = chunk.tensor.rows_of(part)
    starts = rows.row_starts(first, chunk.n_rows)
    if not isinstance(part.tensor, TensorInfo):
        return read_view(part.tensor, rows, starts, Reader(inputs))
    read = _read_transposed if rows.is_transposed else _read_runs
    return read(part.tensor, rows, starts, inputs[part.tensor.path], buffers)


def _read_runs(
    source: TensorInfo, rows: Matrix, starts: NDArray[np.int64], descriptor: int, buffers: Buffers
) -> NDArray[np.uint8]:
    """Rows whose elements lie together, wherever the rows lie."""
    columns, n_rows = rows.columns.size, len(starts)
    layout = layout_of(stored_type(source.dtype))
    row_bytes = columns // layout.block_size * layout.block_bytes
    raw = buffers.get("raw", n_rows * row_bytes)
    lowest = int(starts.min())
    places = (starts - lowest) // columns
    if places.max() == n_rows - 1 and (places * columns == starts - lowest).all():  # one run, perhaps in another order
        read_at(descriptor, raw, source, source.offset + lowest // layout.block_size * layout.block_bytes)
        if (np.diff(starts) == columns).all():
            return raw.reshape(n_rows, row_bytes)
        ordered = buffers.get("ordered", raw.size).reshape(n_rows, row_bytes)
        return np.take(raw.reshape(n_rows, row_bytes), places, axis=0, out=ordered, mode="clip")
    breaks = np.flatnonzero(np.diff(starts) != columns) + 1
    for begin, end in pairwise((0, *breaks.tolist(), n_rows)):
        offset = source.offset + int(starts[begin]) // layout.block_size * layout.block_bytes
        read_at(descriptor, raw[begin * row_bytes : end * row_bytes], source, offset)
    return raw.reshape(n_rows, row_bytes)


def _read_transposed(
    source: TensorInfo, rows: Matrix, starts: NDArray[np.int64], descriptor: int, buffers: Buffers
) -> NDArray[np.uint8]:
    """Rows that are columns in the source: there, one row after the other is read as far as it is needed.

    After every band of such rows, which stays in the caches, what was read is turned.
    """
    columns, n_rows = rows.columns.size, len(starts)
    item = layout_of(stored_type(source.dtype)).block_bytes
    word = np.dtype(f"u{item}")
    span = (n_rows - 1) * rows.spread + 1
    raw = buffers.get("raw", min(BAND, columns) * span * item).reshape(-1, span * item)
    ordered = buffers.get("ordered", n_rows * columns * item).view(word).reshape(n_rows, columns)
    pieces = [piece.data for piece in raw]
    shown = raw.view(word)[:, :: rows.spread].T
    offset, step = source.offset + int(starts[0]) * item, rows.columns.stride * item
    for left in range(0, columns, BAND):
        right = min(left + BAND, columns)
        for column in range(left, right):
            read_into(descriptor, pieces[column - left], source, offset + column * step)
        np.copyto(ordered[:, left:right], shown[:, : right - left])
    return ordered.view(np.uint8)


def read_values(chunk: Chunk, stored: NDArray[np.uint8], buffers: Buffers) -> NDArray[np.float32]:
    """The values of rows that `read_rows` read, float32 [n_rows, columns], in the buffer "values"."""
    values = _mapped(chunk, stored, buffers)
    scaling = chunk.tensor.scaling
    if scaling is None:
        return values
    scaled = buffers.get_floats("values", *values.shape)
    if scaling.columns is not None:
        values = np.multiply(values, scaling.columns, out=scaled)
    if scaling.rows is not None:
        rows = scaling.rows[chunk.first_row : chunk.first_row + chunk.n_rows]
        values = np.multiply(values, rows[:, None], out=scaled)
    return values


def _mapped(chunk: Chunk, stored: NDArray[np.uint8], buffers: Buffers) -> NDArray[np.float32]:
    values = decode_rows(chunk.part.type, stored, chunk.tensor.matrix[1], buffers, "values")
    match chunk.tensor.map:
        case Map.ADD_ONE:
            return np.add(values, np.float32(1), out=buffers.get_floats("values", *values.shape))
        case Map.SUBTRACT_ONE:
            return np.subtract(values, np.float32(1), out=buffers.get_floats("values", *values.shape))
        case Map.NEGATED_EXP:
            return _negated_exp(values)
        case Map.LOG_OF_NEGATED:
            return _log_of_negated(values)
    return values


def _negated_exp(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """In float64, so that every machine rounds to the same float32."""
    return (-np.exp(values.astype(np.float64))).astype(np.float32)


def _log_of_negated(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What `_negated_exp` makes these values of; several float32 may do, and the one next to the logarithm may not."""
    with np.errstate(all="ignore"):
        found = np.log(-values.astype(np.float64)).astype(np.float32)
        below, above = (np.nextafter(found, np.float32(end)) for end in (-np.inf, np.inf))
        for candidate in (below, above):
            found = np.where(_negated_exp(found) == values, found, candidate)
        return np.where(_negated_exp(found) == values, found, np.log(-values))


def decode_rows(
    type: WeightType, packed: NDArray[np.uint8], columns: int, buffers: Buffers, name: str
) -> NDArray[np.float32]:
    """Stored rows [n, row_bytes] as float32 [n, columns], in the buffer `name`."""
    if type is TensorType.F32:
        return packed.view(np.float32)
    values = buffers.get_floats(name, packed.shape[0], columns)
    scheme(type).decode(packed, values)
    return values


def read_tensor(info: TensorInfo) -> NDArray[np.float32]:
    """All of a small tensor, float32 in its shape. Raises FormatError."""
    stored = np.empty(info.nbytes, np.uint8)
    try:
        descriptor = os.open(info.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FormatError(info.path, f"cannot be read: {error.strerror}") from error
    try:
        read_at(descriptor, stored, info, info.offset)
    finally:
        os.close(descriptor)
    columns = info.shape[-1] if info.shape else 1
    rows = stored.reshape(-1, tensor_bytes(TensorType[info.dtype], (columns,)))
    return decode_rows(TensorType[info.dtype], rows, columns, Buffers(), "values").reshape(info.shape)


def require_finite(values: NDArray[np.float32], chunk: Chunk) -> None:
    """Raise NonFiniteError, with the place in the source, if one of the chunk's weights is NaN or infinite."""
    from llmkit.kernels.finite import first_nonfinite

    index = first_nonfinite(values.reshape(-1))
    if index >= 0:
        row, column = divmod(index, values.shape[1])
        raise NonFiniteError(
            f"{origin(chunk.tensor, chunk.part)} holds {values[row, column]}{_place(chunk, row, column)}; the model is "
            "damaged or was saved after training diverged. --allow-nonfinite takes it all the same"
        )


def origin(tensor: PlannedTensor, part: Stored | Computed) -> str:
    """Where a part of a tensor comes from, for messages."""
    if isinstance(part, Stored):
        return f"{part.path}: tensor {part.tensor.name!r}"
    return f"tensor {tensor.name!r}"


def _place(chunk: Chunk, row: int, column: int) -> str:
    """The place of a value in the source's tensor, given its place in the chunk."""
    if not isinstance(chunk.part, Stored) or (
        isinstance(chunk.part.tensor, TensorInfo) and chunk.part.tensor.strides is not None
    ):
        return ""
    rows = chunk.tensor.rows_of(chunk.part)
    start = int(rows.row_starts(chunk.first_row - chunk.part_row + row, 1)[0])
    place = np.unravel_index(start + column * rows.columns.stride, chunk.part.tensor.shape)
    return f" at {[int(index) for index in place]}"
