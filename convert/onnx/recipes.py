"""The precisions of the ONNX target, and the type that each gives a tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from llmkit.convert.onnx.providers import find_provider
from llmkit.errors import UnsupportedError
from llmkit.quantize.blockwise import BLOCK_SIZES, BlockwiseFormat
from llmkit.quantize.schemes import WeightType
from llmkit.types import TensorType

T = TypeVar("T")

ACCURACY_LEVELS: Final = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRecipe:
    """`matrices` is the type of matrices, None for the same as of all else, which is `float_type`.

    `float_type` is None where the provider has a say.
    """

    name: str
    float_type: TensorType | None = None
    matrices: BlockwiseFormat | None = None

    @property
    def label(self) -> str:
        """As in names of folders: INT4, FP32."""
        return self.name.upper()


@dataclass(frozen=True, slots=True)
class OnnxType:
    """A type asked for some tensors: int4, int8 or float, and of the first two the form of blocks; None: as usual."""

    name: str | None
    block_size: int | None = None
    symmetric: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxOptions:
    """What a user asks for beside the recipe; None leaves it to the recipe.

    mixture: the name of one of MIXTURES, for int4. block_size: weights that share a scale, 16 to 256. symmetric:
    whether blocks do without zero points. accuracy_level: how MatMulNBits computes (0: as ONNX Runtime likes, 1: in
    float32, 4: with activations of 8 bits). tensor_types: patterns searched in the names, and their types; the first
    that matches wins. provider: where the model is to run.

    Raises UnsupportedError for what the operators do not have.
    """

    mixture: str | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    accuracy_level: int | None = None
    tensor_types: tuple[tuple[re.Pattern[str], OnnxType], ...] = ()
    provider: str = "cpu"

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            raise UnsupportedError(f"block size {self.block_size}; ONNX Runtime has {', '.join(map(str, BLOCK_SIZES))}")
        if self.accuracy_level is not None and self.accuracy_level not in ACCURACY_LEVELS:
            raise UnsupportedError(
                f"accuracy level {self.accuracy_level}; ONNX Runtime has {', '.join(map(str, ACCURACY_LEVELS))}"
            )
        if self.mixture is not None and self.mixture not in MIXTURES:
            raise UnsupportedError(f"recipe {self.mixture!r}; known for onnx-int4: {', '.join(MIXTURES)}")
        find_provider(self.provider)

    def mixed(self, recipe: OnnxRecipe, n_layers: int) -> OnnxOptions:
        """The options for a model, with the types of the mixture for what the user asks no other for.

        Raises UnsupportedError for a mixture that is not of this recipe.
        """
        if self.mixture is None:
            return self
        if recipe.matrices != _INT4:
            raise UnsupportedError(f"recipe {self.mixture!r} is one of onnx-int4, not of onnx-{recipe.name}")
        return replace(self, tensor_types=(*self.tensor_types, *MIXTURES[self.mixture](n_layers)))


# Blocks of 32 without zero points, as in ONNX Runtime GenAI's builder. On SmolLM2, without an importance matrix and
# with one that has products, blocks of 64 make the file 10 % smaller and the KL divergence 57 and 39 % larger, blocks
# of 16 the file 19 % larger and, with products, the divergence 38 % smaller. Zero points make it 20 to 24 % smaller,
# the file 2 % larger, and decoding on a CPU 12 % slower (scripts/bench onnx-blocks).
_INT4: Final = BlockwiseFormat(4, 32, symmetric=True)
_INT8: Final = BlockwiseFormat(8, 32, symmetric=True)

RECIPES: Final[dict[str, OnnxRecipe]] = {
    recipe.name: recipe
    for recipe in (
        OnnxRecipe(name="fp32", float_type=TensorType.F32),
        OnnxRecipe(name="fp16", float_type=TensorType.F16),
        OnnxRecipe(name="int8", matrices=_INT8),
        OnnxRecipe(name="int4", matrices=_INT4),
    )
}
SHORT_NAMES: Final = {"q4": "int4", "q8": "int8"}


def _quality(n_layers: int) -> tuple[tuple[re.Pattern[str], OnnxType], ...]:
    """More bits where an error costs most for its size.

    Measured on SmolLM2, per megabyte, beside int4 with zero points in blocks of 32 everywhere: eight bits lower the KL
    divergence most in values, in the last block, in keys and in the first block; elsewhere they give less than half of
    that, and attention's output does better with smaller blocks.
    """
    int8, small, usual = OnnxType("int8", 64, True), OnnxType("int4", 16, False), OnnxType("int4", 32, False)
    return (
        (re.compile(rf"^(token_embd|output)\.|^blk\.(0|{n_layers - 1})\.|attn_[kv]\."), int8),
        (re.compile(r"attn_output\."), small),
        (re.compile(""), usual),
    )


MIXTURES: Final[dict[str, Callable[[int], tuple[tuple[re.Pattern[str], OnnxType], ...]]]] = {"quality": _quality}
_FORMATS: Final = {"int4": _INT4, "int8": _INT8}
_FLOAT: Final = "float"
TYPE_NAMES: Final = (*_FORMATS, _FLOAT)
# A `z` behind the block size asks for zero points.
_TYPE: Final = re.compile(r"(?P<name>int4|int8|float)(?:(?<!float)/(?P<size>[0-9]{1,4})(?P<zero_points>z)?)?")


def find_onnx_recipe(name: str) -> OnnxRecipe:
    """The recipe called `name`, such as int4. Raises UnsupportedError."""
    found = RECIPES.get(SHORT_NAMES.get(name, name))
    if found is None:
        if name in ("int5", "q5"):
            raise UnsupportedError("ONNX Runtime has no operator for weights of 5 bits; take onnx-int4 or onnx-int8")
        raise UnsupportedError(f"unknown target 'onnx-{name}'; known: {', '.join(f'onnx-{key}' for key in RECIPES)}")
    return found


def parse_onnx_type(text: str) -> tuple[re.Pattern[str], OnnxType]:
    """`REGEX=TYPE` as (pattern, type), for a type such as int8, int8/128 or float. Raises UnsupportedError."""
    pattern, _, name = text.rpartition("=")
    found = _TYPE.fullmatch(name.lower())
    if not pattern or found is None:
        raise UnsupportedError(
            f"{text!r}: expected REGEX=TYPE with a type of {', '.join(TYPE_NAMES)}, such as int8/128"
        )
    size = None if found["size"] is None else int(found["size"])
    if size is not None and size not in BLOCK_SIZES:
        raise UnsupportedError(f"{text!r}: block size {size}; ONNX Runtime has {', '.join(map(str, BLOCK_SIZES))}")
    try:
        return re.compile(pattern), OnnxType(found["name"], size, False if found["zero_points"] else None)
    except re.error as error:
        raise UnsupportedError(f"{text!r}: {pattern!r} is not a regular expression: {error}") from error


def is_onnx_type(name: str) -> bool:
    """Whether a type is one of those that `parse_onnx_type` knows."""
    return _TYPE.fullmatch(name.lower()) is not None


def float_type_of(recipe: OnnxRecipe, options: OnnxOptions) -> TensorType:
    """The type of activations, cache and vectors."""
    if recipe.matrices is not None:
        return find_provider(options.provider).float_type
    assert recipe.float_type is not None
    return recipe.float_type


def type_of(names: Sequence[str], shape: tuple[int, ...], recipe: OnnxRecipe, options: OnnxOptions) -> WeightType:
    """The type of a tensor of these names. Vectors stay floats, those of experts too, and the matrices that choose
    experts."""
    float_type = float_type_of(recipe, options)
    if not names[0].endswith(".weight") or len(shape) < 2 or "ffn_gate_inp" in names[0]:
        return float_type
    asked = next((type for pattern, type in options.tensor_types if any(map(pattern.search, names))), OnnxType(None))
    form = recipe.matrices if asked.name is None else _FORMATS.get(asked.name)
    if form is None:
        return float_type
    return replace(
        form,
        half_scales=float_type is TensorType.F16,
        block_size=_first(asked.block_size, options.block_size, form.block_size),
        symmetric=_first(asked.symmetric, options.symmetric, form.symmetric),
    )


def _first(*choices: T | None) -> T:
    """The first that says something."""
    return next(choice for choice in choices if choice is not None)
