"""What a conversion will do, decided before any weight is read.

A plan is made from headers, config and tokenizer alone. It names every output tensor with its source, transform,
type and byte range, so executing it only fills byte ranges, in any order and by any number of threads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.footprint import Footprint
from llmkit.convert.packed.base import PackedTensor
from llmkit.convert.transforms import Axis, Map, Matrix, View
from llmkit.quantize.feedback import Feedback
from llmkit.quantize.schemes import WeightType, array_widths
from llmkit.types import CopiedType, StoredType, TensorInfo, TensorType, layout_of, stored_type

if TYPE_CHECKING:
    from llmkit.convert.frameworks.target import Assembly


@dataclass(frozen=True, slots=True)
class Computed:
    """Values that follow from the config, float32."""

    values: tuple[float, ...]

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def n_elements(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Stored:
    """Values of a checkpoint or GGUF file: those of `tensor` that `view` shows, in its order."""

    tensor: TensorInfo | PackedTensor
    view: View

    @staticmethod
    def whole(tensor: TensorInfo | PackedTensor) -> Stored:
        """The tensor as it is."""
        if isinstance(tensor, TensorInfo) and tensor.strides is not None:
            return Stored(tensor, View(tuple(map(Axis, tensor.shape, tensor.strides))))
        return Stored(tensor, View.of(tensor.shape))

    @property
    def type(self) -> StoredType:
        """SafeTensors and GGUF call their types by the same names."""
        return stored_type(self.tensor.dtype) if isinstance(self.tensor, TensorInfo) else self.tensor.type

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """What the values are read from."""
        return (self.tensor,) if isinstance(self.tensor, TensorInfo) else self.tensor.stored

    @property
    def path(self) -> Path:
        """The file, or the first of several."""
        return self.files[0].path

    @property
    def n_elements(self) -> int:
        return self.view.n_elements


@dataclass(frozen=True, slots=True)
class Scaling:
    """What the values of a matrix are multiplied by: float32 [rows], and float32 [columns]; None is 1."""

    rows: NDArray[np.float32] | None = None
    columns: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One output tensor: where its values come from and which bytes of its file they fill.

    `shape` has the slowest dimension first. `parts` hold the values, one after the other: most tensors have one part,
    a stack of experts has one for each, a tensor whose rows change places may have several. `map` is done to the
    values, and `scaling` then multiplies them. `wanted` differs from `type` where the recipe had to fall back, for the
    stated `reason`. `offset` counts from the start of the file; of a type that stores several arrays, `other_offsets`
    are those of all but the first. `importance`, float32 [experts, columns], weighs the squared error of each column
    when the tensor is encoded, one row for each matrix of shape[-2:]. `feedback` rounds the weights of a row so that
    later ones make good the errors of earlier ones; only for blockwise types of 4 bits.
    """

    name: str
    shape: tuple[int, ...]
    type: WeightType
    parts: tuple[Stored | Computed, ...]
    offset: int
    nbytes: int
    wanted: WeightType
    reason: str = ""
    map: Map | None = None
    other_offsets: tuple[int, ...] = ()
    scaling: Scaling | None = field(default=None, repr=False, compare=False)
    importance: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    feedback: Feedback | None = field(default=None, repr=False, compare=False)

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def source_type(self) -> StoredType:
        """How the source stores the values; parts that are stored differently count as what the first one is."""
        return self.parts[0].type

    @property
    def is_stored(self) -> bool:
        """Whether the values come from a file and not from the config."""
        return isinstance(self.parts[0], Stored)

    @property
    def is_copied(self) -> bool:
        """Whether the output holds the source's bytes, row by row."""
        is_as_stored = self.map is None and self.scaling is None
        return is_as_stored and all(part.type == self.type for part in self.parts)

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns). A vector whose elements do not lie together is a column: its elements are rows."""
        if not self.shape or 0 in self.shape:
            return (1, 1) if not self.shape else (0, self.shape[-1])
        if len(self.shape) == 1 and not self._is_run:
            return self.shape[0], 1
        return self.n_elements // self.shape[-1], self.shape[-1]

    @property
    def _is_run(self) -> bool:
        """Whether all values lie one after the other in one place."""
        part = self.parts[0]
        if len(self.parts) > 1:
            return False
        return not isinstance(part, Stored) or part.view.is_contiguous

    @property
    def ggml_type(self) -> TensorType:
        """The type, in a file that has no other types than ggml's."""
        assert isinstance(self.type, TensorType), f"{self.name} is planned as {self.type.name}"
        return self.type

    def ranges(self, first_row: int, n_rows: int) -> list[tuple[int, int]]:
        """Where in the file rows lie: (offset, bytes) in each of the type's arrays."""
        return [
            (offset + first_row * width, n_rows * width)
            for offset, width in zip(
                (self.offset, *self.other_offsets), array_widths(self.type, self.matrix[1]), strict=True
            )
        ]

    def rows_of(self, part: Stored) -> Matrix:
        """The rows of this tensor's matrix that come from `part`, as they lie there."""
        return part.view.matrix(self.matrix[1])

    @property
    def rows_per_expert(self) -> int:
        """Rows that share one row of `importance`; all rows where there is none."""
        if self.importance is None or len(self.shape) < 2:
            return max(1, self.matrix[0])
        return self.shape[-2]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One output file: `header` at the start, then every tensor at its offset, `total_bytes` in all.

    `name` is that in the folder which the output is; without one the output is the file, or names its parts.
    """

    header: bytes
    tensors: tuple[PlannedTensor, ...]
    total_bytes: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Fallback:
    """Tensors that share one reason for not getting the type the recipe wanted."""

    wanted: WeightType
    type: WeightType
    reason: str
    n_tensors: int
    n_elements: int
    n_bits: float  # of these tensors
    n_bits_wanted: float  # had the wanted type fitted


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """A complete conversion: one output file, or the parts of a split one."""

    source: Path
    target: str
    architecture: str
    label: str  # of the recipe, such as Q4_K_M
    files: tuple[PlannedFile, ...]
    notes: tuple[str, ...]
    footprint: Footprint | None = None  # of a GGUF model
    assembly: Assembly | None = None  # what is built of the files, of which only the weights are planned then

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """The tensors of all files, in order."""
        return tuple(tensor for file in self.files for tensor in file.tensors)

    @property
    def total_bytes(self) -> int:
        return sum(file.total_bytes for file in self.files)

    @property
    def n_params(self) -> int:
        return sum(t.n_elements for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all tensors, without the header."""
        return 8 * sum(t.nbytes for t in self.tensors) / max(1, self.n_params)

    @property
    def bits_per_weight_wanted(self) -> float:
        """The same, had no tensor needed a fallback."""
        extra = sum(f.n_bits - f.n_bits_wanted for f in self.fallbacks)
        return self.bits_per_weight - extra / max(1, self.n_params)

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """Fallbacks grouped by what was wanted, what was taken and why."""
        groups: dict[tuple[WeightType, WeightType, str], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            if tensor.wanted != tensor.type:
                groups.setdefault((tensor.wanted, tensor.type, tensor.reason), []).append(tensor)

        def n_bits(type: WeightType, members: list[PlannedTensor]) -> float:
            if isinstance(type, TensorType | CopiedType):
                return sum(t.n_elements for t in members) * layout_of(type).bits_per_weight
            return 8.0 * sum(t.matrix[0] * sum(array_widths(type, t.matrix[1])) for t in members)

        return tuple(
            Fallback(
                wanted,
                type,
                reason,
                len(members),
                sum(t.n_elements for t in members),
                n_bits(type, members),
                n_bits(wanted, members),
            )
            for (wanted, type, reason), members in groups.items()
        )

    @property
    def types(self) -> dict[WeightType, tuple[int, int, int]]:
        """Per type: number of tensors, weights, bytes."""
        tensors: Counter[WeightType] = Counter()
        weights: Counter[WeightType] = Counter()
        sizes: Counter[WeightType] = Counter()
        for t in self.tensors:
            tensors[t.type] += 1
            weights[t.type] += t.n_elements
            sizes[t.type] += t.nbytes
        return {type: (tensors[type], weights[type], sizes[type]) for type in tensors}
