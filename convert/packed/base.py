"""What a tensor is that is put together from several stored ones, such as quantised weights and their scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.packed.reader import Reader
from llmkit.errors import FormatError, UnsupportedError
from llmkit.types import StoredType, TensorInfo, TensorType


class PackedTensor(Protocol):
    """A tensor whose rows are computed from stored ones as they are needed.

    `name` and `shape` are those under which the rules of a family look for it. Its rows, of shape[-1] weights, are
    numbered through all other axes and come as `type` stores them: float32, or a block format that the checkpoint's
    bits are brought into without loss. `stored` are the tensors that they are read from. Fewer rows than
    `rows_together` take as long to read as that many.
    """

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def type(self) -> StoredType: ...

    @property
    def stored(self) -> tuple[TensorInfo, ...]: ...

    @property
    def rows_together(self) -> int: ...

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[Any]:
        """`count` rows from row `first` on: float32 [count, columns] if that is the `type`, else uint8 [count, bytes].

        Raises FormatError for files that have changed or hold values that cannot be.
        """
        ...


@dataclass(frozen=True, slots=True)
class OneAsFloats:
    """What a `PackedTensor` says of itself that is one stored tensor, read as float32 row by row."""

    tensor: TensorInfo

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return (self.tensor,)

    @property
    def rows_together(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a method made of a checkpoint: its packed tensors, and the names of all stored ones that these stand for."""

    tensors: tuple[PackedTensor, ...]
    used: frozenset[str]


@dataclass(frozen=True, slots=True)
class Packing:
    """A quantised checkpoint as a method finds it: `settings` are config.json's, `tensors` what the files hold."""

    settings: ConfigReader
    tensors: Mapping[str, TensorInfo]

    def endings(self, suffix: str) -> list[str]:
        """The names that end in `suffix`, without it."""
        return [name.removesuffix(suffix) for name in self.tensors if name.endswith(suffix)]

    def get(self, name: str, *dtypes: str, shape: tuple[int, ...] | None = None) -> TensorInfo:
        """The stored tensor `name` of one of `dtypes` and of `shape`. Raises FormatError."""
        found = self.tensors.get(name)
        if found is None:
            first = next(iter(self.tensors.values()))
            raise FormatError(first.path.parent, "missing, which quantised weights beside it need", tensor=name)
        require(found, *dtypes, shape=shape)
        return found

    def find(self, name: str, *dtypes: str, shape: tuple[int, ...] | None = None) -> TensorInfo | None:
        """The same, None if it is not there."""
        return self.get(name, *dtypes, shape=shape) if name in self.tensors else None


FLOATS = ("F32", "F16", "BF16")


def require(tensor: TensorInfo, *dtypes: str, shape: tuple[int, ...] | None = None) -> None:
    """Raise FormatError if a stored tensor has another dtype, another shape, or does not lie in its natural order."""
    if dtypes and tensor.dtype not in dtypes:
        raise FormatError(
            tensor.path,
            f"has dtype {tensor.dtype}; this quantisation has {' or '.join(dtypes)} here",
            tensor=tensor.name,
        )
    if shape is not None and tensor.shape != shape:
        raise FormatError(
            tensor.path,
            f"shape {list(tensor.shape)} does not fit the weights it belongs to, which make it {list(shape)}",
            tensor=tensor.name,
        )
    if tensor.strides is not None:
        raise FormatError(
            tensor.path,
            "is stored as a transposed view, which quantised weights never are; "
            "save the checkpoint again with contiguous tensors",
            tensor=tensor.name,
        )


def unsupported(settings: ConfigReader, what: str) -> UnsupportedError:
    """The error for a variant of a method that llmkit does not read."""
    return UnsupportedError(
        f"{settings.path}: {what}; convert the original checkpoint, whose weights are float32, float16 or bfloat16"
    )
