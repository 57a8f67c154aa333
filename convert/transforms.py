"""How a tensor of a checkpoint becomes one of the target: where its elements lie, and what is done to each.

A view reorders, splits and transposes without a copy. It is NumPy's strided view of a C-contiguous array, without the
array: planning needs no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Map(Enum):
    """What is done to every value, in float32."""

    ADD_ONE = "w + 1"
    NEGATED_EXP = "-exp(w)"
    # The ways back.
    SUBTRACT_ONE = "w - 1"
    LOG_OF_NEGATED = "log(-w)"


class Axis(NamedTuple):
    """`size` places, `stride` stored elements apart."""

    size: int
    stride: int


@dataclass(frozen=True, slots=True)
class View:
    """Element (i, j, ...) lies `offset` + i * axes[0].stride + j * axes[1].stride + ... elements into the tensor."""

    axes: tuple[Axis, ...]
    offset: int = 0

    @staticmethod
    def of(shape: tuple[int, ...]) -> View:
        """All of a C-contiguous tensor of `shape`."""
        return View(tuple(Axis(size, prod(shape[i + 1 :])) for i, size in enumerate(shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie one after the other."""
        axes = _joined(self.axes)
        return not axes or (len(axes) == 1 and axes[0].stride == 1)

    def split(self, axis: int, *sizes: int) -> View:
        """One axis as several of `sizes`, of which one may be -1, as in `reshape`. Raises ValueError."""
        size, stride = self.axes[axis]
        known = prod(s for s in sizes if s != -1)
        if sizes.count(-1) > 1 or not known or size % known or (-1 not in sizes and known != size):
            raise ValueError(f"an axis of {size} does not split into {sizes}")
        whole = [size // known if s == -1 else s for s in sizes]
        parts = tuple(Axis(s, stride * prod(whole[i + 1 :])) for i, s in enumerate(whole))
        axis %= len(self.axes)
        return View((*self.axes[:axis], *parts, *self.axes[axis + 1 :]), self.offset)

    def swap(self, first: int, second: int) -> View:
        """Two axes in each other's place."""
        axes = list(self.axes)
        axes[first], axes[second] = axes[second], axes[first]
        return View(tuple(axes), self.offset)

    def part(self, axis: int, start: int, stop: int | None = None, step: int = 1) -> View:
        """The places start, start + step, ... before `stop` (the end if it is None) of an axis."""
        size, stride = self.axes[axis]
        places = range(*slice(start, stop, step).indices(size))
        axes = list(self.axes)
        axes[axis] = Axis(len(places), stride * step)
        return View(tuple(axes), self.offset + stride * places.start)

    def at(self, axis: int, index: int) -> View:
        """One place of an axis, which goes."""
        size, stride = self.axes[axis]
        if not -size <= index < size:
            raise ValueError(f"place {index} of an axis of {size}")
        axis %= len(self.axes)
        return View((*self.axes[:axis], *self.axes[axis + 1 :]), self.offset + stride * (index % size))

    def matrix(self, columns: int) -> Matrix:
        """The elements in order as rows of `columns`. Raises ValueError if a row is no run of equal strides."""
        axes = _joined(self.axes)
        if columns == 1:
            return Matrix(tuple(axes), Axis(1, 1), self.offset)
        last = axes.pop() if axes else Axis(1, 1)
        if last.size % columns:
            raise ValueError(f"rows of {columns} do not lie in order in a view of {self.shape}")
        if last.size > columns:
            axes.append(Axis(last.size // columns, last.stride * columns))
        return Matrix(tuple(axes), Axis(columns, last.stride), self.offset)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A view as rows: the axes whose places, in order, are the rows, and the axis within each row."""

    rows: tuple[Axis, ...]
    columns: Axis
    offset: int

    @property
    def n_rows(self) -> int:
        return prod(axis.size for axis in self.rows)

    def row_starts(self, first: int, count: int) -> NDArray[np.int64]:
        """The stored element with which each of the rows first .. first + count begins, int64 [count]."""
        left = np.arange(first, first + count, dtype=np.int64)
        starts = np.full(count, self.offset, np.int64)
        for size, stride in reversed(self.rows):
            left, place = np.divmod(left, size)
            starts += place * stride
        return starts

    @property
    def is_transposed(self) -> bool:
        """Whether the elements of a row lie apart, those of a column less so."""
        return self.columns.size > 1 and self.columns.stride != 1

    @property
    def rows_together(self) -> int:
        """Rows along the innermost axis."""
        return self.rows[-1].size if self.rows else 1

    @property
    def spread(self) -> int:
        """How many stored elements are read for one value."""
        return max(1, abs(self.rows[-1].stride)) if self.is_transposed and self.rows else 1


def _joined(axes: tuple[Axis, ...]) -> list[Axis]:
    """The axes of the same elements in the same order, as few as possible."""
    joined: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        if joined and joined[-1].stride == axis.size * axis.stride:
            joined[-1] = Axis(joined[-1].size * axis.size, axis.stride)
        else:
            joined.append(axis)
    return joined
