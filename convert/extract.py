"""Planning to take the tensors out of a file of an older format: one SafeTensors file, every value as it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.reader import Reader
from llmkit.convert.plan import ConversionPlan, PlannedFile, PlannedTensor, Stored
from llmkit.errors import UnsupportedError
from llmkit.formats.older import TensorFile, Values
from llmkit.formats.safetensors import DTYPE_BITS
from llmkit.formats.safetensors_layout import plan_safetensors
from llmkit.types import StoredType, TensorInfo, layout_of, stored_type

# Sparse tensors may have any shape, and tensors may share their bytes: more than both of these is not meant.
_FREE_BYTES: Final = 1 << 30
_MOST_TIMES: Final = 1000


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A `PackedTensor` whose values `values` gives, in the tensor's own type."""

    tensor: TensorInfo
    values: Values

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape or (1,)

    @property
    def type(self) -> StoredType:
        return stored_type(self.tensor.dtype)

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return (self.tensor,)

    @property
    def rows_together(self) -> int:
        return max(1, self.tensor.n_elements // max(1, self.shape[-1]))

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[Any]:
        width = self.shape[-1] * layout_of(self.type).block_bytes
        found: NDArray[np.uint8] = self.values.read(first * width, count * width)
        return found.reshape(count, width)


def plan_extraction(file: TensorFile) -> ConversionPlan:
    """Plan one SafeTensors file of the tensors of `file`, by their names, in its order, of their own types.

    A tensor of a type that SafeTensors lacks is left out, which a note says; sparse ones become dense.

    Raises UnsupportedError if none is left, for names that a SafeTensors file cannot have, and for tensors that take
    more than 1,000 times the bytes of the files.
    """
    kept = [tensor for tensor in file.tensors if tensor.dtype in DTYPE_BITS]
    notes = list(file.notes)
    notes += [
        f"tensor {tensor.name!r} is left out: SafeTensors has no type for {tensor.dtype}"
        for tensor in file.tensors
        if tensor.dtype not in DTYPE_BITS
    ]
    if not kept:
        raise UnsupportedError(f"{file.path}: holds no tensor that a SafeTensors file can hold")
    n_bytes, n_stored = sum(tensor.nbytes for tensor in kept), sum(path.stat().st_size for path in file.files)
    if n_bytes > max(_FREE_BYTES, _MOST_TIMES * n_stored):
        raise UnsupportedError(
            f"{file.path}: its tensors would take {n_bytes:,} bytes, over {_MOST_TIMES:,} times as many as it has: "
            "sparse ones of a shape that cannot be meant, or the same bytes over and over"
        )
    if any(tensor.name == "__metadata__" for tensor in kept):
        raise UnsupportedError(f"{file.path}: has a tensor named '__metadata__', which SafeTensors files cannot have")
    places = Counter(
        (tensor.path, tensor.offset) for tensor in kept if tensor.nbytes and tensor.name not in file.values
    )
    shared = sum(count for count in places.values() if count > 1)
    if shared:
        notes.append(f"{shared:,} tensors lie where others do; each has values of its own in the new file")
    try:
        layout = plan_safetensors([(t.name, stored_type(t.dtype), t.shape) for t in kept])
    except ValueError as error:
        raise UnsupportedError(f"{file.path}: has too many tensors for one SafeTensors file: {error}") from error
    planned = tuple(_planned(tensor, file, offset) for tensor, offset in zip(kept, layout.offsets, strict=True))
    return ConversionPlan(
        source=file.path,
        target="safetensors",
        architecture="",
        label="",
        files=(PlannedFile(layout.header, planned, layout.total_bytes),),
        notes=tuple(notes),
    )


def _planned(tensor: TensorInfo, file: TensorFile, offset: int) -> PlannedTensor:
    values = file.values.get(tensor.name)
    type = stored_type(tensor.dtype)
    return PlannedTensor(
        name=tensor.name,
        shape=tensor.shape,
        type=type,
        parts=(Stored.whole(tensor if values is None else _Encoded(tensor, values)),),
        offset=offset,
        nbytes=tensor.nbytes,
        wanted=type,
    )
