"""The table of schemes: a type's file is imported when the type is first asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Final, TypeAlias, overload

from llmkit.errors import UnsupportedError
from llmkit.quantize.blockwise import BlockwiseFormat
from llmkit.quantize.schemes.base import Importance, Packed, Rows, Scheme
from llmkit.quantize.schemes.blockwise import BlockwiseScheme
from llmkit.types import CopiedType, StoredType, TensorType, layout_of

__all__ = [
    "SCHEMES",
    "BlockwiseScheme",
    "Importance",
    "Packed",
    "Rows",
    "Scheme",
    "WeightType",
    "array_widths",
    "scheme",
]

# How a tensor's weights are stored: ggml's and SafeTensors' types lie in one array, the forms of ONNX Runtime in two or
# three.
WeightType: TypeAlias = StoredType | BlockwiseFormat

# Each module defines SCHEME. The lazy import keeps numba out of commands that encode nothing.
SCHEMES: Final[dict[TensorType, str]] = {
    TensorType.F32: "f32",
    TensorType.F16: "f16",
    TensorType.BF16: "bf16",
    TensorType.Q4_0: "q4_0",
    TensorType.Q4_1: "q4_1",
    TensorType.Q5_0: "q5_0",
    TensorType.Q5_1: "q5_1",
    TensorType.Q8_0: "q8_0",
    TensorType.Q2_K: "q2_k",
    TensorType.Q3_K: "q3_k",
    TensorType.Q4_K: "q4_k",
    TensorType.Q5_K: "q5_k",
    TensorType.Q6_K: "q6_k",
    TensorType.IQ4_NL: "iq4_nl",
    TensorType.IQ4_XS: "iq4_xs",
    TensorType.MXFP4: "mxfp4",
    # Read only.
    TensorType.Q8_K: "q8_k",
    TensorType.IQ1_S: "iq1_s",
    TensorType.IQ1_M: "iq1_m",
    TensorType.IQ2_XXS: "iq2_xxs",
    TensorType.IQ2_XS: "iq2_xs",
    TensorType.IQ2_S: "iq2_s",
    TensorType.IQ3_XXS: "iq3_xxs",
    TensorType.IQ3_S: "iq3_s",
    TensorType.TQ1_0: "tq1_0",
    TensorType.TQ2_0: "tq2_0",
    TensorType.NVFP4: "nvfp4",
    TensorType.Q1_0: "q1_0",
    TensorType.Q2_0: "q2_0",
}


@overload
def scheme(type: StoredType) -> Scheme: ...


@overload
def scheme(type: BlockwiseFormat) -> BlockwiseScheme: ...


def scheme(type: WeightType) -> Scheme | BlockwiseScheme:
    """The scheme of `type`. Raises UnsupportedError for one that is not in the table."""
    return _of_stored_type(type) if isinstance(type, TensorType | CopiedType) else BlockwiseScheme(type)


def array_widths(type: WeightType, columns: int) -> tuple[int, ...]:
    """Bytes of a row of `columns` weights in each of the arrays that a tensor of `type` consists of."""
    if isinstance(type, TensorType | CopiedType):
        layout = layout_of(type)
        return (columns // layout.block_size * layout.block_bytes,)
    return type.widths(columns)


@cache
def _of_stored_type(type: StoredType) -> Scheme:
    if isinstance(type, CopiedType) or type not in SCHEMES:
        known = ", ".join(t.name for t in SCHEMES)
        raise UnsupportedError(f"tensor type {type.name} is not implemented; known: {known}")
    found: Scheme = import_module(f"{__name__}.{SCHEMES[type]}").SCHEME
    return found
