"""The precisions of the ONNX target, and the type that each gives a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmkit.errors import UnsupportedError
from llmkit.quantize.blockwise import BlockwiseFormat
from llmkit.quantize.schemes import WeightType
from llmkit.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRecipe:
    """`float_type` is that of activations, cache and vectors; `matrices` that of matrices, None for the same."""

    name: str
    float_type: TensorType
    matrices: BlockwiseFormat | None = None

    @property
    def label(self) -> str:
        """As in names of folders: INT4, FP32."""
        return self.name.upper()

    def type_of(self, name: str, shape: tuple[int, ...]) -> WeightType:
        """The type of a tensor. Vectors stay floats, those of experts too, and the matrices that choose experts."""
        is_matrix = name.endswith(".weight") and len(shape) > 1 and "ffn_gate_inp" not in name
        return self.matrices if is_matrix and self.matrices is not None else self.float_type


# Blocks of 32 as in ONNX Runtime GenAI's builder.
RECIPES: Final[dict[str, OnnxRecipe]] = {
    recipe.name: recipe
    for recipe in (
        OnnxRecipe(name="fp32", float_type=TensorType.F32),
        OnnxRecipe(name="int8", float_type=TensorType.F32, matrices=BlockwiseFormat(8, 32, symmetric=True)),
        OnnxRecipe(name="int4", float_type=TensorType.F32, matrices=BlockwiseFormat(4, 32, symmetric=True)),
    )
}
SHORT_NAMES: Final = {"q4": "int4", "q8": "int8"}


def find_onnx_recipe(name: str) -> OnnxRecipe:
    """The recipe called `name`, such as int4. Raises UnsupportedError."""
    found = RECIPES.get(SHORT_NAMES.get(name, name))
    if found is None:
        if name in ("int5", "q5"):
            raise UnsupportedError("ONNX Runtime has no operator for weights of 5 bits; take onnx-int4 or onnx-int8")
        raise UnsupportedError(f"unknown target 'onnx-{name}'; known: {', '.join(f'onnx-{key}' for key in RECIPES)}")
    return found
