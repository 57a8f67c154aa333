"""Reading rows of a view of a packed tensor, which itself is read by whole rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.base import PackedTensor
from llmkit.convert.packed.reader import Reader
from llmkit.convert.transforms import Matrix

# Rows that are not asked for are read along where this many or fewer lie between others: a call for each costs more.
_LARGEST_GAP: Final = 3


def shows_whole_rows(tensor: PackedTensor, rows: Matrix) -> bool:
    """Whether each row of a view is one of the tensor's."""
    width = tensor.shape[-1]
    axes = (*(axis.stride for axis in rows.rows if axis.size > 1), rows.offset)
    return rows.columns.size == width and not rows.is_transposed and all(place % width == 0 for place in axes)


def most_read(tensor: PackedTensor, rows: Matrix) -> int:
    """How many weights at most are unpacked for one that a view shows."""
    if not shows_whole_rows(tensor, rows):
        return 4  # and the places of each in the tensor
    step = abs(rows.rows[-1].stride) // tensor.shape[-1] if rows.rows else 1
    return max(1, min(step, _LARGEST_GAP + 1))


def read_view(tensor: PackedTensor, rows: Matrix, starts: NDArray[np.int64], reader: Reader) -> NDArray[np.uint8]:
    """The rows of a view that begin at the elements `starts`, as the tensor's `type` stores them, uint8 [n, bytes]."""
    if shows_whole_rows(tensor, rows):
        found = _read_rows(tensor, starts // tensor.shape[-1], reader)
    else:
        found = _read_elements(tensor, rows, starts, reader)
    return found.view(np.uint8)


def _read_rows(tensor: PackedTensor, numbers: NDArray[np.int64], reader: Reader) -> NDArray[Any]:
    """The rows of these numbers, in this order."""
    if (np.diff(numbers) == 1).all():
        return tensor.read_rows(int(numbers[0]), len(numbers), reader)
    ordered = np.unique(numbers)
    breaks = np.flatnonzero(np.diff(ordered) > _LARGEST_GAP + 1) + 1
    read, places = [], np.empty(len(numbers), np.int64)
    before = 0
    for begin, end in pairwise((0, *breaks.tolist(), len(ordered))):
        first, last = int(ordered[begin]), int(ordered[end - 1])
        read.append(tensor.read_rows(first, last - first + 1, reader))
        inside = (numbers >= first) & (numbers <= last)
        places[inside] = numbers[inside] - first + before
        before += last - first + 1
    return np.concatenate(read)[places]


def _read_elements(
    tensor: PackedTensor, rows: Matrix, starts: NDArray[np.int64], reader: Reader
) -> NDArray[np.float32]:
    """Any elements of a tensor whose rows come as float32; as many are unpacked at once as are asked for."""
    width = tensor.shape[-1]
    places = starts[:, None] + np.arange(rows.columns.size) * rows.columns.stride
    numbers, columns = np.divmod(places, width)
    found = np.empty(places.shape, np.float32)
    needed = np.unique(numbers)
    at_once = max(1, places.size // width)
    for begin in range(0, len(needed), at_once):
        slab = needed[begin : begin + at_once]
        values = _read_rows(tensor, slab, reader)
        inside = (numbers >= slab[0]) & (numbers <= slab[-1])
        found[inside] = values[np.searchsorted(slab, numbers[inside]), columns[inside]]
    return found
