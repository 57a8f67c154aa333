"""Cutting tensors into chunks that threads work on, within a budget of buffer memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.plan import ConversionPlan, PlannedTensor
from llmkit.errors import LlmkitError

# Chunks of this many weights keep a thread's buffers (float32, source and output) in its share of the CPU caches,
# and make what Python adds per chunk negligible.
CHUNK_WEIGHTS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of whole rows of one tensor, in output file number `file`."""

    file: int
    tensor: PlannedTensor
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
    largest = max(plan.tensors, key=_group_bytes)
    need = _group_bytes(largest)
    if need > memory:
        raise LlmkitError(
            f"--memory: tensor {largest.name!r} is worked on {_group_rows(largest)} rows at a time, which needs "
            f"{need:,} bytes of buffers; {memory:,} are allowed"
        )
    return memory // max(1, need)


def cut(plan: ConversionPlan, budget: int) -> list[Chunk]:
    """Every tensor as runs of whole groups of rows whose buffers stay within `budget` bytes.

    No chunk crosses from one expert's rows to the next one's.
    """
    return [
        Chunk(number, tensor, first, n_rows)
        for number, file in enumerate(plan.files)
        for tensor in file.tensors
        for first, n_rows in _runs(tensor, budget)
    ]


def _runs(tensor: PlannedTensor, budget: int) -> Iterator[tuple[int, int]]:
    rows, columns = tensor.matrix
    if not rows * columns:
        return
    group = _group_rows(tensor)
    n_groups = min(budget // _group_bytes(tensor), max(1, CHUNK_WEIGHTS // (columns * group)))
    n_rows = n_groups * group
    for start in range(0, rows, tensor.rows_per_expert):
        end = min(start + tensor.rows_per_expert, rows)
        for first in range(start, end, n_rows):
            yield first, min(n_rows, end - first)


def _group_rows(tensor: PlannedTensor) -> int:
    """Rows that must be worked on together: one, or those of a head where they change places."""
    return tensor.rows.head_dim if tensor.rows else 1


def _group_bytes(tensor: PlannedTensor) -> int:
    """Buffer bytes for one group of rows.

    At most 16 per weight. Writing: as read, as much again where rows change places, as float32, as encoded. Verifying:
    as read, as float32, as read back, and that as float32.
    """
    return 16 * tensor.matrix[1] * _group_rows(tensor)


def run(work: Callable[[Chunk, Buffers], None], chunks: Sequence[Chunk], threads: int) -> None:
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
