"""Cutting tensors into chunks that threads work on, within a budget of buffer memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import gcd
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.views import most_read
from llmkit.convert.plan import Computed, ConversionPlan, PlannedTensor, Stored
from llmkit.errors import LlmkitError
from llmkit.types import TensorInfo, layout_of

# Chunks of this many weights keep a thread's buffers (float32, source and output) in its share of the CPU caches,
# and make what Python adds per chunk negligible.
CHUNK_WEIGHTS = 256 * 1024
# Where rows are stored as columns, a chunk takes a piece of each stored row: at least so many bytes, if memory allows,
# for a call each. Not a power of two, so that the pieces of one band are not in each other's way in the caches.
PIECE_BYTES = 65 * 64
BAND = 64  # stored rows

# Bytes of scratch that unpacking takes for each weight: its code, float32 in two orders, its scale and zero point.
_UNPACKING_BYTES = 24


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of whole rows of one tensor, in output file number `file`.

    The rows come from `part`, whose first row is row `part_row` of the tensor.
    """

    file: int
    tensor: PlannedTensor
    part: Stored | Computed
    part_row: int
    first_row: int
    n_rows: int

    @property
    def importance(self) -> NDArray[np.float32] | None:
        """The importance of the columns, float32 [columns]: the same for all rows, which are of one expert."""
        found = self.tensor.importance
        return None if found is None else found[self.first_row // self.tensor.rows_per_expert]


class Buffers:
    """A thread's scratch memory, grown to the largest chunk and reused."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def get(self, name: str, n_bytes: int) -> NDArray[np.uint8]:
        array = self._arrays.get(name)
        if array is None or array.size < n_bytes:
            array = self._arrays[name] = np.empty(n_bytes, np.uint8)
        return array[:n_bytes]

    def get_floats(self, name: str, n_rows: int, columns: int) -> NDArray[np.float32]:
        """Float32 [n_rows, columns]."""
        return self.get(name, 4 * n_rows * columns).view(np.float32).reshape(n_rows, columns)


def check_budget(plan: ConversionPlan, memory: int) -> int:
    """How many threads can work at once within `memory` bytes of buffers; LlmkitError if not even one can."""
    if not plan.tensors:
        return 1
    largest = max(plan.tensors, key=_row_bytes)
    need = _row_bytes(largest)
    if need > memory:
        raise LlmkitError(
            f"--memory: a row of tensor {largest.name!r} needs {need:,} bytes of buffers; {memory:,} are allowed"
        )
    return memory // max(1, need)


def cut(plan: ConversionPlan, budget: int) -> Iterator[Chunk]:
    """Every tensor as runs of rows whose buffers stay within `budget` bytes.

    No chunk crosses from one expert's rows to the next one's, nor from one part to the next. They are made as they are
    asked for: a large mixture has a million of them.
    """
    for number, file in enumerate(plan.files):
        for tensor in file.tensors:
            for part, part_row, first, n_rows in _runs(tensor, budget):
                yield Chunk(number, tensor, part, part_row, first, n_rows)


def _runs(tensor: PlannedTensor, budget: int) -> Iterator[tuple[Stored | Computed, int, int, int]]:
    rows, columns = tensor.matrix
    if not rows * columns:
        return
    within_budget = max(1, budget // _row_bytes(tensor))
    part_row = 0
    for part in tensor.parts:
        most = min(within_budget, max(1, CHUNK_WEIGHTS // columns, _worth_reading(tensor, part)))
        end = part_row + part.n_elements // columns
        together = _rows_together(tensor, part)
        for start in range(part_row, end, together):
            stop = min(start + together, end)
            for first in range(start, stop, most):
                yield part, part_row, first, min(most, stop - first)
        part_row = end


def _rows_together(tensor: PlannedTensor, part: Stored | Computed) -> int:
    """Rows that one chunk may hold: those of one expert, and of one matrix where rows are stored as columns.

    Both begin at multiples of their number within a part.
    """
    together = tensor.rows_per_expert
    if isinstance(part, Stored):
        rows = tensor.rows_of(part)
        if rows.is_transposed:
            together = gcd(together, rows.rows_together)
    return together


def _worth_reading(tensor: PlannedTensor, part: Stored | Computed) -> int:
    """Rows that take no longer to read than one."""
    if isinstance(part, Computed):
        return 1
    if not isinstance(part.tensor, TensorInfo):
        return part.tensor.rows_together
    rows = tensor.rows_of(part)
    return PIECE_BYTES // (layout_of(part.type).block_bytes * rows.spread) if rows.is_transposed else 1


def _row_bytes(tensor: PlannedTensor) -> int:
    """Buffer bytes for one row.

    Writing: as read, as much again where values change places, as float32, as encoded. Verifying: as read, as float32,
    as read back, and that as float32. Of rows that are stored as columns one band at a time is as it was read, with
    what lies between the values.
    """
    if not tensor.n_elements:
        return 0
    return max((_part_row_bytes(tensor, part) for part in tensor.parts), default=0)


def _part_row_bytes(tensor: PlannedTensor, part: Stored | Computed) -> int:
    columns = tensor.matrix[1]
    if isinstance(part, Computed):
        return 16 * columns
    rows = tensor.rows_of(part)
    if not isinstance(part.tensor, TensorInfo):
        return (16 + _UNPACKING_BYTES * most_read(part.tensor, rows)) * columns
    as_read = min(BAND, columns) * rows.spread if rows.is_transposed else columns
    return 12 * columns + 4 * as_read


def run(work: Callable[[Chunk, Buffers], None], chunks: Iterable[Chunk], threads: int) -> None:
    """Let `threads` threads take chunks until none is left; the first error stops them all."""
    remaining = iter(chunks)
    lock = Lock()
    stop = Event()

    def loop() -> None:
        buffers = Buffers()
        while not stop.is_set():
            with lock:
                chunk = next(remaining, None)
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
