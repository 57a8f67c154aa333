"""Recipes: which type each tensor of a file gets.

A recipe is one of llama.cpp's file types (`enum llama_ftype`). The choices per tensor are those of llama-quantize
(llama.cpp, src/llama-quant.cpp), expressed on GGUF tensor names; a type whose block does not divide a row falls
back to another, as there, but never silently: every `Choice` carries what was wanted and why it was not taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmkit.errors import UnsupportedError
from llmkit.types import BLOCK_LAYOUTS, TensorType

T = TensorType


@dataclass(frozen=True, slots=True)
class Recipe:
    """A file type: its name in targets (`gguf-<name>`), ggml's number, and the type most tensors get."""

    name: str
    file_type: int
    default: TensorType

    @property
    def label(self) -> str:
        """The spelling used in file names, such as Q4_K_M."""
        return self.name.upper()

    @property
    def quantizes(self) -> bool:
        return self.default not in PLAIN_TYPES


PLAIN_TYPES: Final = frozenset({T.F32, T.F16, T.BF16})

RECIPES: Final[dict[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe("f32", 0, T.F32),
        Recipe("f16", 1, T.F16),
        Recipe("bf16", 32, T.BF16),
        Recipe("q8_0", 7, T.Q8_0),
        Recipe("q6_k", 18, T.Q6_K),
        Recipe("q5_k_m", 17, T.Q5_K),
        Recipe("q5_k_s", 16, T.Q5_K),
        Recipe("q5_1", 9, T.Q5_1),
        Recipe("q5_0", 8, T.Q5_0),
        Recipe("q4_k_m", 15, T.Q4_K),
        Recipe("q4_k_s", 14, T.Q4_K),
        Recipe("q4_1", 3, T.Q4_1),
        Recipe("q4_0", 2, T.Q4_0),
    )
}

SHORT_NAMES: Final = {"q4": "q4_k_m", "q5": "q5_k_m", "q8": "q8_0"}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name` (case does not matter; q4, q5, q8 are short for q4_k_m, q5_k_m, q8_0)."""
    key = name.lower()
    key = SHORT_NAMES.get(key, key)
    if key not in RECIPES:
        raise UnsupportedError(f"unknown type {name!r}; known: {', '.join([*RECIPES, *SHORT_NAMES])}")
    return RECIPES[key]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The facts about a model that the choices depend on; heads are those of the first block."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0
    architecture: str = "llama"


@dataclass(frozen=True, slots=True)
class TypeOptions:
    """What a user asks for beside the recipe.

    `pure`: every quantisable tensor gets the recipe's main type. `tensor_types`: pattern (searched in the name) and
    type, the first match wins. `output_type`, `token_embedding_type`: the types of those matrices. `fallback`: if
    false, a tensor that cannot have the type it should is an error.
    """

    pure: bool = False
    tensor_types: tuple[tuple[re.Pattern[str], TensorType], ...] = ()
    output_type: TensorType | None = None
    token_embedding_type: TensorType | None = None
    fallback: bool = True


def parse_type(name: str) -> TensorType:
    """The tensor type called `name`; case does not matter."""
    try:
        return T[name.upper()]
    except KeyError:
        known = ", ".join(type.name.lower() for type in T)
        raise UnsupportedError(f"unknown tensor type {name!r}; known: {known}") from None


def parse_tensor_type(text: str) -> tuple[re.Pattern[str], TensorType]:
    """Pattern and type of `REGEX=TYPE`; the pattern is searched in tensor names, whatever the case."""
    pattern, separator, type = text.rpartition("=")
    if not (pattern and separator and type):
        raise UnsupportedError(f"tensor type {text!r}: expected REGEX=TYPE, such as 'attn_v=q8_0'")
    try:
        return re.compile(pattern, re.IGNORECASE | re.ASCII), parse_type(type)
    except re.error as error:
        raise UnsupportedError(f"tensor type {text!r}: {pattern!r} is not a regular expression: {error}") from None


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of one tensor; if a fallback was needed, the `wanted` type and the `reason`."""

    type: TensorType
    wanted: TensorType
    reason: str = ""


def choose_types(
    recipe: Recipe,
    model: ModelShape,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    *,
    kept: Mapping[str, TensorType] | None = None,
    options: TypeOptions = TypeOptions(),
    has_imatrix: bool = False,
) -> dict[str, Choice]:
    """The type of every tensor, given as (GGUF name, shape slowest first) in any order.

    `kept` gives the types that tensors have which are not to be quantised; without it they are float32, or what the
    recipe asks for.
    """
    names = [name for name, _ in tensors]
    tied = "output.weight" not in names
    # llama-quantize counts attention and FFN tensors as it meets them, block by block; their rank is the position here.
    order = sorted(names, key=_block_number)
    attn_v = {name: rank for rank, name in enumerate(n for n in order if "attn_v.weight" in n)}
    choices = {}
    for name, shape in tensors:
        if not _is_quantizable(name, shape):
            if kept is not None:
                choices[name] = Choice(kept[name], kept[name])
                continue
            plain = T.F32 if _is_always_f32(name, shape) or recipe.quantizes else recipe.default
            choices[name] = Choice(plain, plain)
        elif not recipe.quantizes:
            choices[name] = Choice(recipe.default, recipe.default)
        else:
            wanted = _wanted_type(recipe, model, name, tied, attn_v)
            choices[name] = _fall_back(wanted, shape[-1], is_output=_is_output(name, tied))
    return choices


def _wanted_type(recipe: Recipe, model: ModelShape, name: str, tied: bool, attn_v: dict[str, int]) -> TensorType:
    default = recipe.default
    if _is_output(name, tied):
        return default if default is T.Q8_0 else T.Q6_K
    if "attn_v.weight" in name:
        rank = attn_v[name]
        chosen = default
        if recipe.name in ("q4_k_m", "q5_k_m") and _gets_more_bits(rank, len(attn_v)):
            chosen = T.Q6_K
        elif recipe.name == "q4_k_s" and rank < 4:
            chosen = T.Q5_K
        # In the 70B model eight heads share one attn_v: a small tensor, so more bits cost next to nothing.
        if model.n_layers == 80 and model.n_heads != model.n_kv_heads and chosen is T.Q4_K:
            chosen = T.Q5_K
        return chosen
    if "ffn_down" in name:
        block = _block_number(name)
        if recipe.name in ("q4_k_m", "q5_k_m") and _gets_more_bits(block, model.n_layers):
            return T.Q6_K
        if recipe.name == "q4_k_s" and block < model.n_layers // 8:
            return T.Q5_K
    return default


def _gets_more_bits(rank: int, n: int) -> bool:
    """The first and last eighth of the blocks, and every third between them."""
    return rank < n // 8 or rank >= 7 * n // 8 or (rank - n // 8) % 3 == 2


# A 256-weight type that does not divide the row -> the 32-weight type that takes its place.
_FALLBACKS: Final = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}


def _fall_back(wanted: TensorType, columns: int, *, is_output: bool) -> Choice:
    block = BLOCK_LAYOUTS[wanted].block_size
    if columns % block == 0:
        return Choice(wanted, wanted)
    chosen = T.Q8_0 if is_output else _FALLBACKS.get(wanted, wanted)
    if columns % BLOCK_LAYOUTS[chosen].block_size:
        chosen = T.F16
    return Choice(chosen, wanted, f"rows of {columns} weights are not a multiple of {block}")


def _is_output(name: str, tied: bool) -> bool:
    """Whether `name` computes the logits: the output matrix, or the embedding that serves as one."""
    return name == "output.weight" or (tied and name == "token_embd.weight")


def _is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    return _n_dims(shape) >= 2 and name.endswith("weight") and not name.endswith("_norm.weight")


def _is_always_f32(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) <= 1 or not name.endswith(".weight") or name.endswith("_norm.weight")


def _n_dims(shape: tuple[int, ...]) -> int:
    """Dimensions as ggml counts them: leading ones do not count."""
    return next((len(shape) - i for i, n in enumerate(shape) if n != 1), 1)


def _block_number(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1
