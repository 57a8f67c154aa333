"""Executing a plan: threads fill byte ranges of the output, within a budget of buffer memory.

Every chunk is a run of whole rows of one tensor. It is read with `pread` (a truncated input is then an error and not a
fatal signal, and mapped pages do not count as memory), widened to float32, brought into the target's row order,
checked, encoded and written to its place. The bytes do not depend on the number of threads or the budget.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.plan import ConversionPlan, PlannedTensor
from llmkit.errors import FormatError, LlmkitError, NonFiniteError
from llmkit.formats.output import OutputFile, publish
from llmkit.protocols import Progress
from llmkit.quantize.schemes import Scheme, scheme
from llmkit.types import TensorInfo, TensorType

# Chunks of this many weights keep a thread's buffers (float32, source and output) in its share of the CPU caches,
# and make what Python adds per chunk negligible.
CHUNK_WEIGHTS = 256 * 1024

_SOURCE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class _Chunk:
    tensor: PlannedTensor
    first_row: int
    n_rows: int


def execute(
    plan: ConversionPlan,
    output: Path,
    *,
    threads: int,
    memory: int,
    progress: Progress,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
) -> None:
    """Write the planned file to `output`, with `threads` threads and at most `memory` bytes of buffers.

    Fewer threads work where the budget has no room for more. Raises NonFiniteError, FormatError (an input changed since
    it was planned), OutputError, LlmkitError if the budget is too small for a single thread (see `check_budget`).
    """
    threads = min(threads, check_budget(plan, memory))
    chunks = _chunks(plan.tensors, memory // threads)
    with ExitStack() as stack:
        inputs = _open_inputs(plan.tensors, stack)
        file = stack.enter_context(publish(output, plan.total_bytes, overwrite=overwrite))
        progress.start(f"writing {output.name}", plan.total_bytes)
        try:
            file.write_at(plan.header, 0)
            progress.advance(len(plan.header))
            _run(partial(_work, file, inputs, allow_nonfinite, progress), iter(chunks), threads)
        except BaseException:
            progress.abort()
            raise
        progress.finish()


def check_budget(plan: ConversionPlan, memory: int) -> int:
    """How many threads can work at once within `memory` bytes of buffers; LlmkitError if not even one can."""
    largest = max(plan.tensors, key=_group_bytes)
    need = _group_bytes(largest)
    if need > memory:
        raise LlmkitError(
            f"--memory: tensor {largest.name!r} is worked on {_group_rows(largest)} rows at a time, which needs "
            f"{need:,} bytes of buffers; {memory:,} are allowed"
        )
    return memory // need


def _group_rows(tensor: PlannedTensor) -> int:
    """Rows that must be worked on together: one, or those of a head where they change places."""
    return tensor.rows.head_dim if tensor.rows else 1


def _group_bytes(tensor: PlannedTensor) -> int:
    """Buffer bytes for one group of rows.

    Per weight: up to 4 bytes as read, 4 as float32, 4 more where rows change places, up to 4 as encoded.
    """
    return 16 * _matrix(tensor)[1] * _group_rows(tensor)


def _chunks(tensors: Sequence[PlannedTensor], budget: int) -> list[_Chunk]:
    """Split every tensor into runs of whole groups of rows whose buffers stay within `budget` bytes."""
    chunks = []
    for tensor in tensors:
        rows, columns = _matrix(tensor)
        group = _group_rows(tensor)
        n_groups = min(budget // _group_bytes(tensor), max(1, CHUNK_WEIGHTS // (columns * group)))
        n_rows = n_groups * group
        chunks += [_Chunk(tensor, first, min(n_rows, rows - first)) for first in range(0, rows, n_rows)]
    return chunks


def _run(work: Any, chunks: Iterator[_Chunk], threads: int) -> None:
    """Let `threads` threads take chunks until none is left; the first error stops them all."""
    lock = Lock()
    stop = Event()

    def loop() -> None:
        buffers = _Buffers()
        while not stop.is_set():
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            try:
                work(chunk, buffers)
            except BaseException:
                stop.set()
                raise

    pool = ThreadPoolExecutor(threads, thread_name_prefix="llmkit")
    futures: list[Future[None]] = [pool.submit(loop) for _ in range(threads)]
    interrupt: BaseException | None = None
    while any(not future.done() for future in futures):
        # The caller closes the files when this returns, so it must not return, however often it is interrupted,
        # before the last worker has let go of them.
        try:
            wait(futures)
        except BaseException as error:
            stop.set()
            interrupt = interrupt or error
    pool.shutdown()
    if interrupt:
        raise interrupt
    for future in futures:
        future.result()  # raises what ended it


class _Buffers:
    """A thread's scratch memory, grown to the largest chunk and reused."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def get(self, name: str, n_bytes: int) -> NDArray[np.uint8]:
        array = self._arrays.get(name)
        if array is None or array.size < n_bytes:
            array = self._arrays[name] = np.empty(n_bytes, np.uint8)
        return array[:n_bytes]


def _work(
    file: OutputFile,
    inputs: dict[Path, int],
    allow_nonfinite: bool,
    progress: Progress,
    chunk: _Chunk,
    buffers: _Buffers,
) -> None:
    tensor = chunk.tensor
    columns = _matrix(tensor)[1]
    values = _values(chunk, columns, inputs, buffers)
    if not allow_nonfinite:
        _require_finite(values, chunk, columns)
    target = scheme(tensor.type)
    row_bytes = target.row_bytes(columns)
    packed = buffers.get("packed", chunk.n_rows * row_bytes).reshape(chunk.n_rows, row_bytes)
    target.encode(values, packed)
    if not allow_nonfinite:
        _require_finite_scales(packed, target, chunk)
    file.write_at(packed.data.cast("B"), tensor.offset + chunk.first_row * row_bytes)
    progress.advance(packed.nbytes, tensor.name)


def _values(chunk: _Chunk, columns: int, inputs: dict[Path, int], buffers: _Buffers) -> NDArray[np.float32]:
    """The chunk's weights in the target's row order, float32 [n_rows, columns]."""
    source = chunk.tensor.source
    first, n = chunk.first_row * columns, chunk.n_rows * columns
    if not isinstance(source, TensorInfo):
        return np.array(source[first : first + n], np.float32).reshape(chunk.n_rows, columns)
    width = _SOURCE_BYTES[source.dtype]
    raw = buffers.get("raw", n * width)
    _read_at(inputs[source.path], raw, source, source.offset + first * width)
    if source.dtype == "F32":
        values = raw.view(np.float32)
    else:
        from llmkit.kernels import halffloat

        values = buffers.get("values", 4 * n).view(np.float32)
        widen = halffloat.bf16_to_f32 if source.dtype == "BF16" else halffloat.f16_to_f32
        widen(raw.view(np.uint16), values)
    if chunk.tensor.rows is None:
        return values.reshape(chunk.n_rows, columns)
    order = chunk.tensor.rows.order()
    ordered = buffers.get("ordered", 4 * n).view(np.float32).reshape(-1, order.size, columns)
    np.take(values.reshape(-1, order.size, columns), order, axis=1, out=ordered, mode="clip")
    return ordered.reshape(chunk.n_rows, columns)


def _require_finite(values: NDArray[np.float32], chunk: _Chunk, columns: int) -> None:
    from llmkit.kernels.finite import first_nonfinite

    index = first_nonfinite(values.ravel())
    if index >= 0:
        row, column = divmod(index, columns)
        raise NonFiniteError(
            f"{_origin(chunk.tensor)} holds {values[row, column]} at {_place(chunk, row, column)}; the checkpoint is "
            "damaged or was saved after training diverged. --allow-nonfinite converts it all the same"
        )


def _place(chunk: _Chunk, row: int, column: int) -> str:
    """The place of a value in the checkpoint's tensor, given its place in the chunk, whose rows may be reordered."""
    row += chunk.first_row
    if chunk.tensor.rows:
        head, place = divmod(row, chunk.tensor.rows.head_dim)
        row = head * chunk.tensor.rows.head_dim + int(chunk.tensor.rows.order()[place])
    return f"[{row}, {column}]" if len(chunk.tensor.shape) > 1 else f"[{max(row, column)}]"


def _require_finite_scales(packed: NDArray[np.uint8], target: Scheme, chunk: _Chunk) -> None:
    """Values that are finite in float32 can exceed the 16-bit floats in which weights or scales are stored."""
    blocks = packed.reshape(-1, target.block.itemsize)
    for offset, exponent in _half_floats(target):
        bits = blocks[:, offset : offset + 2].view(np.uint16)
        if ((bits & exponent) == exponent).any():
            raise NonFiniteError(
                f"{_origin(chunk.tensor)} holds values too large for {target.type.name}, whose weights or scales are "
                "16-bit floats; gguf-f32 holds every value"
            )


def _half_floats(target: Scheme) -> list[tuple[int, int]]:
    """Where in a block of this type 16-bit floats lie, in bytes, and the bits of their exponent."""
    if target.type is TensorType.BF16:
        return [(0, 0x7F80)]
    fields: Mapping[str, Any] = target.block.fields or {}
    return [(offset, 0x7C00) for dtype, offset, *_ in fields.values() if dtype == np.float16]


def _origin(tensor: PlannedTensor) -> str:
    if isinstance(tensor.source, TensorInfo):
        return f"{tensor.source.path}: tensor {tensor.source.name!r}"
    return f"tensor {tensor.name!r}"


def _matrix(tensor: PlannedTensor) -> tuple[int, int]:
    """(rows, columns). A vector that is reordered is a column, so that its elements are rows."""
    if tensor.rows is not None and len(tensor.shape) == 1:
        return tensor.shape[0], 1
    return tensor.n_elements // tensor.shape[-1], tensor.shape[-1]


def _open_inputs(tensors: Sequence[PlannedTensor], stack: ExitStack) -> dict[Path, int]:
    inputs: dict[Path, int] = {}
    for tensor in tensors:
        if isinstance(tensor.source, TensorInfo) and tensor.source.path not in inputs:
            try:
                descriptor = os.open(tensor.source.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise FormatError(tensor.source.path, f"cannot be read: {error.strerror}") from error
            stack.callback(os.close, descriptor)
            inputs[tensor.source.path] = descriptor
    return inputs


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
