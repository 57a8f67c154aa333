"""Frozen records and tables shared by every part of llmkit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from math import prod
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias


class TensorType(IntEnum):
    """Tensor types of GGUF files; the values are ggml's type numbers (ggml.h, `enum ggml_type`)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


class CopiedType(Enum):
    """Types of SafeTensors files that GGUF lacks: tensors of these are copied, never computed with."""

    BOOL = "BOOL"
    U8 = "U8"
    U16 = "U16"
    U32 = "U32"
    U64 = "U64"
    F8_E4M3 = "F8_E4M3"
    F8_E5M2 = "F8_E5M2"
    F8_E8M0 = "F8_E8M0"
    F8_E4M3FNUZ = "F8_E4M3FNUZ"
    F8_E5M2FNUZ = "F8_E5M2FNUZ"
    C64 = "C64"


# How files may store tensors.
StoredType: TypeAlias = TensorType | CopiedType


class BlockLayout(NamedTuple):
    """How a type stores a row: every `block_size` weights take `block_bytes` bytes."""

    block_size: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size


# Sizes from ggml-common.h and ggml.c (`type_traits`) of the pinned llama.cpp.
BLOCK_LAYOUTS: Final[dict[TensorType, BlockLayout]] = {
    TensorType.F32: BlockLayout(1, 4),
    TensorType.F16: BlockLayout(1, 2),
    TensorType.BF16: BlockLayout(1, 2),
    TensorType.F64: BlockLayout(1, 8),
    TensorType.I8: BlockLayout(1, 1),
    TensorType.I16: BlockLayout(1, 2),
    TensorType.I32: BlockLayout(1, 4),
    TensorType.I64: BlockLayout(1, 8),
    TensorType.Q4_0: BlockLayout(32, 18),
    TensorType.Q4_1: BlockLayout(32, 20),
    TensorType.Q5_0: BlockLayout(32, 22),
    TensorType.Q5_1: BlockLayout(32, 24),
    TensorType.Q8_0: BlockLayout(32, 34),
    TensorType.Q8_1: BlockLayout(32, 36),
    TensorType.IQ4_NL: BlockLayout(32, 18),
    TensorType.MXFP4: BlockLayout(32, 17),
    TensorType.NVFP4: BlockLayout(64, 36),
    TensorType.Q1_0: BlockLayout(128, 18),
    TensorType.Q2_0: BlockLayout(64, 18),
    TensorType.Q2_K: BlockLayout(256, 84),
    TensorType.Q3_K: BlockLayout(256, 110),
    TensorType.Q4_K: BlockLayout(256, 144),
    TensorType.Q5_K: BlockLayout(256, 176),
    TensorType.Q6_K: BlockLayout(256, 210),
    TensorType.Q8_K: BlockLayout(256, 292),
    TensorType.IQ1_S: BlockLayout(256, 50),
    TensorType.IQ1_M: BlockLayout(256, 56),
    TensorType.IQ2_XXS: BlockLayout(256, 66),
    TensorType.IQ2_XS: BlockLayout(256, 74),
    TensorType.IQ2_S: BlockLayout(256, 82),
    TensorType.IQ3_XXS: BlockLayout(256, 98),
    TensorType.IQ3_S: BlockLayout(256, 110),
    TensorType.IQ4_XS: BlockLayout(256, 136),
    TensorType.TQ1_0: BlockLayout(256, 54),
    TensorType.TQ2_0: BlockLayout(256, 66),
}


_COPIED_BYTES: Final = {
    CopiedType.U16: 2, CopiedType.U32: 4, CopiedType.U64: 8, CopiedType.C64: 8,
}  # fmt: skip


def layout_of(type: StoredType) -> BlockLayout:
    """How `type` stores a row."""
    return BLOCK_LAYOUTS[type] if isinstance(type, TensorType) else BlockLayout(1, _COPIED_BYTES.get(type, 1))


def stored_type(dtype: str) -> StoredType:
    """The type that SafeTensors or GGUF files call `dtype`; the two have the same names. Raises KeyError."""
    return CopiedType[dtype] if dtype in CopiedType.__members__ else TensorType[dtype]


def tensor_bytes(type: StoredType, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor of `shape` (slowest dimension first) takes; the last dimension must be whole blocks."""
    layout = layout_of(type)
    row = shape[-1] if shape else 1
    if row % layout.block_size:
        raise ValueError(f"{type.name} stores blocks of {layout.block_size} weights; a row of {row} does not divide")
    return prod(shape[:-1]) * (row // layout.block_size) * layout.block_bytes


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies in a file, whatever the container.

    `dtype` is the container's own name: a SafeTensors dtype ("BF16", "F32", "I64") or a GGUF type
    ("Q4_K"). `shape` has the slowest dimension first (NumPy and Hugging Face order). `offset` counts
    bytes from the start of the file. `strides`, in elements, are set where these do not lie in their natural order,
    as in a transposed tensor of PyTorch; `nbytes` are then still those of its elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None

    @property
    def n_elements(self) -> int:
        return prod(self.shape)
