"""Tensors of a checkpoint from those of a GGUF file: a family's rules read backwards.

A rule says where in the checkpoint each row of a tensor of the file lies. Sorted by those places, the rows are the
checkpoint's tensor: runs of rows of one tensor of the file, evenly apart, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs import Family, HParams, Presence, Source
from llmkit.convert.matching import expected_rules, source_names
from llmkit.convert.plan import Computed, Stored
from llmkit.convert.restore.decoded import DecodedTensor, is_quantized
from llmkit.convert.transforms import Axis, Map, View
from llmkit.errors import UnsupportedError
from llmkit.types import TensorInfo

_INVERSES = {
    None: None,
    Map.ADD_ONE: Map.SUBTRACT_ONE,
    Map.NEGATED_EXP: Map.LOG_OF_NEGATED,
}


@dataclass(frozen=True, slots=True)
class Restored:
    """A tensor of the checkpoint and the runs of the file's values that it consists of."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Stored | Computed, ...]
    map: Map | None


@dataclass(slots=True)
class _Pieces:
    """What is known of a tensor of the checkpoint: (place of the first element there, part), in any order."""

    shape: tuple[int, ...]
    map: Map | None
    parts: list[tuple[int, Stored]] = field(default_factory=list)


def restore_tensors(
    family: Family, hparams: HParams, tensors: Mapping[str, TensorInfo], path: Path
) -> list[Restored] | None:
    """The checkpoint's tensors in the order of the rules; None if these are not the tensors of this family."""
    pieces: dict[str, _Pieces] = {}
    used: set[str] = set()
    for rule, block in expected_rules(family, hparams):
        name = rule.role if block is None else f"blk.{block}.{rule.role}"
        info = tensors.get(name)
        if info is None:
            if rule.presence(hparams) is Presence.REQUIRED:
                return None
            continue
        if rule.presence(hparams) is Presence.ABSENT:
            continue  # another rule may be for it; else it is left
        shape = rule.shape(hparams)
        if info.shape != shape:
            return None
        used.add(name)
        if any(_has_all_of(pieces, source, shape) for source in rule.sources[1:] if source.given(hparams)):
            continue  # the file has it twice, such as an output matrix that is tied to the embedding
        source = rule.sources[0]
        names = source_names(source, rule, block, hparams)
        for place, there in enumerate(names):
            target = shape[1:] if "{e}" in source.pattern else shape
            stored = source.stored(hparams) if source.stored else target
            views = source.view(hparams, View.of(stored)) if source.view else View.of(stored)
            found = pieces.setdefault(there, _Pieces(stored, _INVERSES[rule.map]))
            first = place * prod(target)
            for view in views if isinstance(views, tuple) else (views,):
                found.parts += _places(info, first, view, stored[-1] if len(stored) > 1 else 1)
                first += view.n_elements
    left = [name for name in tensors if name not in used and not name.startswith(("rope_freqs.", "rope_factors_"))]
    if left:
        return None
    return [_joined(name, found, path) for name, found in pieces.items()]


def _has_all_of(pieces: Mapping[str, _Pieces], source: Source, shape: tuple[int, ...]) -> bool:
    """Whether another rule has the same tensor, as it is."""
    found = pieces.get(source.pattern)
    return found is not None and source.view is None and found.shape == shape


def _places(info: TensorInfo, first: int, view: View, columns: int) -> list[tuple[int, Stored]]:
    """Where in the checkpoint's tensor, of rows of `columns`, runs of the file's elements from `first` on lie."""
    if columns == 1 or not (matrix := view.matrix(view.shape[-1])).is_transposed:
        rows = view.matrix(columns)
        return _runs(info, first, rows.row_starts(0, rows.n_rows), columns)
    # Rows of the file are columns here, all of them, for each place of the outer axes.
    n = matrix.rows_together
    if n != columns or matrix.spread != 1:
        raise UnsupportedError(f"{info.path}: tensor {info.name!r} has columns that lie apart in the checkpoint")
    m = matrix.columns.size
    found = []
    for group, start in enumerate(matrix.row_starts(0, matrix.n_rows)[::n].tolist()):
        part = View((Axis(m, 1), Axis(n, m)), first + group * n * m)
        if matrix.columns.stride != n:
            raise UnsupportedError(f"{info.path}: tensor {info.name!r} has rows that lie apart in the checkpoint")
        found.append((start, Stored(DecodedTensor(info) if is_quantized(info) else info, part)))
    return found


def _runs(info: TensorInfo, first: int, starts: NDArray[np.int64], columns: int) -> list[tuple[int, Stored]]:
    """The rows in the order of their places, as runs of rows that lie evenly apart in the file."""
    stored = DecodedTensor(info) if is_quantized(info) and columns % info.shape[-1] else info
    order = np.argsort(starts, kind="stable")
    places = starts[order]
    found = []
    begin = 0
    n = len(order)
    while begin < n:
        end = begin + 1
        step = int(order[end] - order[begin]) if end < n else 1
        # Next rows belong to the run while both their places and their numbers go on evenly.
        gaps = np.flatnonzero((np.diff(places[begin:]) != columns) | (np.diff(order[begin:]) != step))
        end = begin + (int(gaps[0]) + 1 if len(gaps) else n - begin)
        view = View((Axis(end - begin, step * columns), Axis(columns, 1)), first + int(order[begin]) * columns)
        found.append((int(places[begin]), Stored(stored, view)))
        begin = end
    return found


def _joined(name: str, pieces: _Pieces, path: Path) -> Restored:
    """All runs in order; what the file does not have, such as positions that are never used, is zeros."""
    parts: list[Stored | Computed] = []
    position = 0
    for place, part in sorted(pieces.parts, key=lambda piece: piece[0]):
        if place < position:
            raise UnsupportedError(f"{path}: two tensors of the file are the same part of {name!r} in the checkpoint")
        if place > position:
            parts.append(Computed((0.0,) * (place - position)))
        parts.append(part)
        position = place + part.n_elements
    if position < prod(pieces.shape):
        parts.append(Computed((0.0,) * (prod(pieces.shape) - position)))
    return Restored(name, pieces.shape, tuple(parts), pieces.map)
