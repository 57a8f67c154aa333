"""Tensors of a checkpoint from those of a GGUF file: a family's rules read backwards.

A rule says where in the checkpoint each row of a tensor of the file lies. Sorted by those places, the rows are the
checkpoint's tensor: runs of rows of one tensor of the file, evenly apart, one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs import Family, HParams, Presence, Source
from llmkit.convert.matching import expected_rules, source_names
from llmkit.convert.packed.base import PackedTensor
from llmkit.convert.packed.decoded import DecodedTensor, is_quantized
from llmkit.convert.plan import Computed, Stored
from llmkit.convert.restore import mxfp4
from llmkit.convert.restore.transposed import TransposedTensor
from llmkit.convert.transforms import Axis, Map, View
from llmkit.errors import UnsupportedError
from llmkit.quantize.schemes import SCHEMES
from llmkit.types import StoredType, TensorInfo, TensorType

_INVERSES = {
    None: None,
    Map.ADD_ONE: Map.SUBTRACT_ONE,
    Map.NEGATED_EXP: Map.LOG_OF_NEGATED,
}


@dataclass(frozen=True, slots=True)
class Restored:
    """A tensor of the checkpoint and the runs of the file's values that it consists of.

    `type` is set where the values are bits of quantised weights, which no other type holds.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Stored | Computed, ...]
    map: Map | None
    type: StoredType | None = None

    def stored_as(self, usual: TensorType) -> StoredType:
        """The type of the tensor in a checkpoint of which most tensors have the `usual` one."""
        return usual if self.type is None else self.type


@dataclass(frozen=True, slots=True)
class _Columns:
    """A matrix [rows, columns] of the file, from element `first` of a tensor on, that is stored transposed.

    Its rows are every `step`-th column of the checkpoint; those between are rows of other tensors.
    """

    tensor: TensorInfo
    first: int
    rows: int
    columns: int
    step: int

    def joined(self, others: Sequence[_Columns]) -> Stored:
        """The checkpoint's matrix, [columns, rows * step], with the columns between those of this one."""
        n_rows = self.rows * self.step
        if self.step == 1 and not is_quantized(self.tensor):
            return Stored(self.tensor, View((Axis(self.columns, 1), Axis(n_rows, self.columns)), self.first))
        whole = TransposedTensor((self.tensor, *(other.tensor for other in others)), self.rows, self.columns)
        return Stored(whole, View((Axis(self.columns, n_rows), Axis(n_rows, 1)), self.first * self.step))

    def goes_with(self, other: _Columns) -> bool:
        """Whether another matrix can have columns between these."""
        return replace(other, tensor=self.tensor) == self


@dataclass(slots=True)
class _Pieces:
    """What is known of a tensor of the checkpoint: (place of the first element there, part), in any order.

    `blocks` are tensors whose rows alternate there, by the place of the first row, and stay MXFP4.
    """

    shape: tuple[int, ...]
    map: Map | None
    parts: list[tuple[int, Stored | _Columns]] = field(default_factory=list)
    blocks: dict[int, TensorInfo] = field(default_factory=dict)


def restore_tensors(
    family: Family, hparams: HParams, tensors: Mapping[str, TensorInfo], path: Path, *, keep_blocks: bool
) -> list[Restored] | None:
    """The checkpoint's tensors in the order of the rules; None if these are not the tensors of this family.

    keep_blocks: leave quantised what the family's checkpoints have quantised in the same way.
    """
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
        if keep_blocks and info.dtype == "MXFP4" and (packed := mxfp4.source_of_blocks(rule)) is not None:
            source = packed
        names = source_names(source, rule, block, hparams)
        for place, there in enumerate(names):
            target = shape[1:] if "{e}" in source.pattern else shape
            stored = source.stored(hparams) if source.stored else target
            views = source.view(hparams, View.of(stored)) if source.view else View.of(stored)
            found = pieces.setdefault(there, _Pieces(stored, _INVERSES[rule.map]))
            if source is not rule.sources[0]:
                found.blocks[mxfp4.first_row(source, hparams)] = info
                continue
            first = place * prod(target)
            for view in views if isinstance(views, tuple) else (views,):
                found.parts += _places(info, first, view, stored[-1] if len(stored) > 1 else 1)
                first += view.n_elements
    left = [name for name in tensors if name not in used and not name.startswith(("rope_freqs.", "rope_factors_"))]
    if left:
        return None
    restored = []
    for name, found in pieces.items():
        restored += _kept(name, found, path) if found.blocks else [_joined(name, found, path)]
    return restored


def _has_all_of(pieces: Mapping[str, _Pieces], source: Source, shape: tuple[int, ...]) -> bool:
    """Whether another rule has the same tensor, as it is."""
    found = pieces.get(source.pattern)
    return found is not None and source.view is None and found.shape == shape


def _places(info: TensorInfo, first: int, view: View, columns: int) -> list[tuple[int, Stored | _Columns]]:
    """Where in the checkpoint's tensor, of rows of `columns`, runs of the file's elements from `first` on lie."""
    last = view.axes[-1]
    if columns == 1 or last.stride == 1 or last.size == 1:
        rows = view.matrix(columns)
        return _runs(info, first, rows.row_starts(0, rows.n_rows), columns)
    # Rows of the file are columns here. Those of a vector have one value each.
    axes = (*view.axes, Axis(1, columns)) if last.size * last.stride == columns else view.axes
    *outer, down, across = axes
    if across.stride != columns or down.size * down.stride != columns or info.shape[-1] not in (across.size, last.size):
        raise UnsupportedError(f"{info.path}: tensor {info.name!r} has columns that lie apart in the checkpoint")
    if TensorType[info.dtype] not in SCHEMES:
        raise UnsupportedError(f"{info.path}: tensor {info.name!r} has type {info.dtype}, which cannot be transposed")
    matrices = View(tuple(outer), view.offset).matrix(1)
    return [
        (start, _Columns(info, first + place * down.size * across.size, down.size, across.size, down.stride))
        for place, start in enumerate(matrices.row_starts(0, matrices.n_rows).tolist())
    ]


def _runs(info: TensorInfo, first: int, starts: NDArray[np.int64], columns: int) -> list[tuple[int, Stored | _Columns]]:
    """The rows in the order of their places, as runs of rows that lie evenly apart in the file."""
    stored = DecodedTensor(info) if is_quantized(info) and columns % info.shape[-1] else info
    order = np.argsort(starts, kind="stable")
    places = starts[order]
    found: list[tuple[int, Stored | _Columns]] = []
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


def _kept(name: str, pieces: _Pieces, path: Path) -> list[Restored]:
    """The two tensors that hold what stays MXFP4."""
    step = pieces.shape[-2] // next(iter(pieces.blocks.values())).shape[-2]
    if sorted(pieces.blocks) != list(range(step)):
        raise UnsupportedError(
            f"{path}: only some of the tensors that are {name!r} in the checkpoint are MXFP4; safetensors-bf16 "
            "decodes them"
        )
    rows = tuple(pieces.blocks[place] for place in range(step))
    found: tuple[PackedTensor, ...] = (mxfp4.BlocksOf(rows), mxfp4.ScalesOf(rows))
    names = (name, mxfp4.scales_of(name))
    return [
        Restored(name, tensor.shape, (Stored.whole(tensor),), None, tensor.type)
        for name, tensor in zip(names, found, strict=True)
    ]


def _joined(name: str, pieces: _Pieces, path: Path) -> Restored:
    """All runs in order; what the file does not have, such as positions that are never used, is zeros."""
    parts: list[Stored | Computed] = []
    position = 0
    found = deque(sorted(pieces.parts, key=lambda piece: piece[0]))
    while found:
        place, piece = found.popleft()
        if place < position:
            raise UnsupportedError(f"{path}: two tensors of the file are the same part of {name!r} in the checkpoint")
        if place > position:
            parts.append(Computed((0.0,) * (place - position)))
        part = _with_columns_between(name, place, piece, found, path) if isinstance(piece, _Columns) else piece
        parts.append(part)
        position = place + part.n_elements
    if position < prod(pieces.shape):
        parts.append(Computed((0.0,) * (prod(pieces.shape) - position)))
    return Restored(name, pieces.shape, tuple(parts), pieces.map)


def _with_columns_between(
    name: str, place: int, piece: _Columns, found: deque[tuple[int, Stored | _Columns]], path: Path
) -> Stored:
    """The matrix of which `piece` has the first column and those that follow in `found`, and go, have the next ones."""
    others = []
    for next_to in range(place + 1, place + piece.step):
        there, other = found.popleft() if found else (-1, piece)
        if there != next_to or not isinstance(other, _Columns) or not piece.goes_with(other):
            raise UnsupportedError(f"{path}: no tensor of the file has the columns of {name!r} between those of others")
        others.append(other)
    return piece.joined(others)
