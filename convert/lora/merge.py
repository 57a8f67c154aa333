"""Adding adapters to a checkpoint's weights, row by row, as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs.config import excerpt
from llmkit.convert.lora.adapter import Adapter, LowRank
from llmkit.convert.packed.base import PackedTensor
from llmkit.convert.packed.reader import Reader, to_float32
from llmkit.errors import FormatError
from llmkit.quantize.schemes import scheme
from llmkit.types import TensorInfo, TensorType

Tensors = Mapping[str, TensorInfo | PackedTensor]


@dataclass(frozen=True, slots=True)
class MergedTensor:
    """A tensor and the changes that adapters make to it, one after the other."""

    base: TensorInfo | PackedTensor
    changes: tuple[LowRank, ...]

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        base = (self.base,) if isinstance(self.base, TensorInfo) else self.base.stored
        return (*base, *(side for change in self.changes for side in (change.a, change.b)))

    @property
    def rows_together(self) -> int:
        return 1 if isinstance(self.base, TensorInfo) else self.base.rows_together

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        # In float64, so that the sums do not depend on how many rows are read at a time.
        rows = _base_rows(self.base, first, count, reader).astype(np.float64)
        for change in self.changes:
            rows += change_of_rows(change, first, count, reader)
        return rows.astype(np.float32)


def _base_rows(base: TensorInfo | PackedTensor, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
    if isinstance(base, TensorInfo):
        return to_float32(base, reader.rows(base, first, count))
    rows = base.read_rows(first, count, reader)
    if base.type is TensorType.F32:
        return rows
    values = np.empty((count, base.shape[-1]), np.float32)
    scheme(base.type).decode(rows, values)
    return values


def change_of_rows(change: LowRank, first: int, count: int, reader: Reader) -> NDArray[np.float64]:
    """What `change` adds to rows first .. first + count, float64 [count, columns]."""
    if change.is_transposed:
        left = to_float32(change.a, reader.columns(change.a, first, count)).T
        right = to_float32(change.b, reader.whole(change.b)).T
    else:
        left = to_float32(change.b, reader.rows(change.b, first, count))
        right = to_float32(change.a, reader.whole(change.a))
    return change.scale * (left.astype(np.float64) @ right.astype(np.float64))


def merge(tensors: Tensors, adapters: Sequence[Adapter], notes: list[str]) -> Tensors:
    """The checkpoint's tensors with the adapters in them; adds to `notes` what they change.

    Raises FormatError for an adapter of another model.
    """
    merged = dict(tensors)
    for adapter in adapters:
        for name, info in adapter.replaced.items():
            _require_base(name, info.shape, info, merged, adapter)
            merged[name] = info
        for name, change in adapter.changes.items():
            _require_base(name, change.shape, change.b, merged, adapter)
            base = merged[name]
            if isinstance(base, MergedTensor):
                merged[name] = MergedTensor(base.base, (*base.changes, change))
            else:
                merged[name] = MergedTensor(base, (change,))
        whole = f" and replaces {len(adapter.replaced)}" if adapter.replaced else ""
        notes.append(f"the adapter in {adapter.folder} changes {len(adapter.changes)} tensors{whole}")
    return merged


def _require_base(name: str, shape: tuple[int, ...], info: TensorInfo, tensors: Tensors, adapter: Adapter) -> None:
    base = tensors.get(name)
    of = f" (it is for {excerpt(adapter.base)})" if adapter.base else ""
    if base is None:
        raise FormatError(info.path, f"changes {name!r}, which the checkpoint does not have{of}", tensor=info.name)
    if base.shape != shape:
        raise FormatError(
            info.path,
            f"changes {name!r} as a tensor of {list(shape)}; the checkpoint has {list(base.shape)}{of}",
            tensor=info.name,
        )
