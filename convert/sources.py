"""Reading the weights of a chunk: from SafeTensors and GGUF files, whatever type they are stored in.

Files are read with `pread`: a truncated input is then an error and not a fatal signal, and mapped pages do not count as
memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.chunks import Buffers, Chunk
from llmkit.convert.plan import PlannedTensor
from llmkit.errors import FormatError, NonFiniteError
from llmkit.quantize.schemes import scheme
from llmkit.types import BLOCK_LAYOUTS, TensorInfo, TensorType

Inputs = Mapping[Path, int]  # open files by path


@contextmanager
def open_inputs(tensors: Sequence[PlannedTensor]) -> Iterator[Inputs]:
    """Open every file that the tensors are read from. Raises FormatError."""
    inputs: dict[Path, int] = {}
    with ExitStack() as stack:
        for tensor in tensors:
            if isinstance(tensor.source, TensorInfo) and tensor.source.path not in inputs:
                try:
                    descriptor = os.open(tensor.source.path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise FormatError(tensor.source.path, f"cannot be read: {error.strerror}") from error
                stack.callback(os.close, descriptor)
                inputs[tensor.source.path] = descriptor
        yield inputs


def read_rows(chunk: Chunk, inputs: Inputs, buffers: Buffers) -> NDArray[np.uint8]:
    """The chunk's rows as the source stores them, in the target's row order, uint8 [n_rows, source_row_bytes]."""
    tensor = chunk.tensor
    columns = tensor.matrix[1]
    source = tensor.source
    if not isinstance(source, TensorInfo):
        first = chunk.first_row * columns
        values = np.array(source[first : first + chunk.n_rows * columns], np.float32)
        return values.view(np.uint8).reshape(chunk.n_rows, -1)
    layout = BLOCK_LAYOUTS[tensor.source_type]
    row_bytes = columns // layout.block_size * layout.block_bytes
    raw = buffers.get("raw", chunk.n_rows * row_bytes)
    _read_at(inputs[source.path], raw, source, source.offset + chunk.first_row * row_bytes)
    if tensor.rows is None:
        return raw.reshape(chunk.n_rows, row_bytes)
    order = tensor.rows.order()
    ordered = buffers.get("ordered", raw.size).reshape(-1, order.size, row_bytes)
    np.take(raw.reshape(ordered.shape), order, axis=1, out=ordered, mode="clip")
    return ordered.reshape(chunk.n_rows, row_bytes)


def decode_rows(
    type: TensorType, packed: NDArray[np.uint8], columns: int, buffers: Buffers, name: str
) -> NDArray[np.float32]:
    """Stored rows [n, row_bytes] as float32 [n, columns], in the buffer `name`."""
    if type is TensorType.F32:
        return packed.view(np.float32)
    values = buffers.get_floats(name, packed.shape[0], columns)
    scheme(type).decode(packed, values)
    return values


def require_finite(values: NDArray[np.float32], chunk: Chunk) -> None:
    """Raise NonFiniteError, with the place in the source, if one of the chunk's weights is NaN or infinite."""
    from llmkit.kernels.finite import first_nonfinite

    index = first_nonfinite(values.reshape(-1))
    if index >= 0:
        row, column = divmod(index, values.shape[1])
        raise NonFiniteError(
            f"{origin(chunk.tensor)} holds {values[row, column]} at {_place(chunk, row, column)}; the model is "
            "damaged or was saved after training diverged. --allow-nonfinite takes it all the same"
        )


def origin(tensor: PlannedTensor) -> str:
    """Where a tensor comes from, for messages."""
    if isinstance(tensor.source, TensorInfo):
        return f"{tensor.source.path}: tensor {tensor.source.name!r}"
    return f"tensor {tensor.name!r}"


def _place(chunk: Chunk, row: int, column: int) -> str:
    """The place of a value in the source's tensor, given its place in the chunk, whose rows may be reordered."""
    tensor = chunk.tensor
    row += chunk.first_row
    if tensor.rows:
        head, place = divmod(row, tensor.rows.head_dim)
        row = head * tensor.rows.head_dim + int(tensor.rows.order()[place])
    if len(tensor.shape) < 2:
        return f"[{max(row, column)}]"
    indices = [column]
    for size in reversed(tensor.shape[1:-1]):
        row, index = divmod(row, size)
        indices.append(index)
    return str([row, *reversed(indices)])


def _read_at(descriptor: int, buffer: NDArray[np.uint8], source: TensorInfo, offset: int) -> None:
    view = buffer.data
    while view:
        try:
            n = os.preadv(descriptor, [view], offset)
        except OSError as error:
            raise FormatError(source.path, f"cannot be read: {error.strerror}", tensor=source.name) from error
        if n == 0:
            raise FormatError(source.path, f"ends {len(view):,} bytes too early; it has changed", tensor=source.name)
        view = view[n:]
        offset += n
