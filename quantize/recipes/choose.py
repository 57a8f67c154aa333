"""Choosing a type for every tensor of a file: options first, then the recipe's mixture, then what the shape allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmkit.errors import UnsupportedError
from llmkit.quantize.recipes.mixtures import ModelShape, Place, mixed_type
from llmkit.quantize.recipes.options import TypeOptions, option_label
from llmkit.quantize.recipes.table import Recipe
from llmkit.quantize.recipes.tensors import (
    PER_LAYER_TOKEN_EMBD,
    Role,
    block_number,
    file_order,
    is_always_f32,
    is_quantizable,
    role_of,
)
from llmkit.types import BLOCK_LAYOUTS, TensorType

T = TensorType


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of one tensor; if a fallback was needed, the `wanted` type and the `reason`.

    `option` is the option that decided, in words, or empty. `needs_importance`: without an importance matrix that
    covers this tensor the type is of no use.
    """

    type: TensorType
    wanted: TensorType
    reason: str = ""
    option: str = ""
    needs_importance: bool = False


_NO_OPTIONS: Final = TypeOptions()
_NONE: Final[Mapping[str, TensorType]] = {}


def choose_types(
    recipe: Recipe,
    model: ModelShape,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    *,
    kept: Mapping[str, TensorType] | None = None,
    quantized: Mapping[str, TensorType] = _NONE,
    options: TypeOptions = _NO_OPTIONS,
    has_imatrix: bool = False,
) -> dict[str, Choice]:
    """The type of every tensor, given as (GGUF name, shape slowest first) in any order.

    `kept` gives the types that tensors have which are not to be quantised; without it they are float32, or what the
    recipe asks for. `quantized` gives the types of tensors that are in a block format already, which they keep unless a
    pattern says otherwise. Raises UnsupportedError if an option cannot be followed, if the recipe needs an importance
    matrix, or if a fallback is needed and refused.

    All is as in llama.cpp, except where that ends in an assertion or a broken file: an `output_type` or
    `token_embedding_type` whose block does not divide the rows falls back as other types do.
    """
    if options.tensor_types and not recipe.quantizes:
        raise UnsupportedError(
            f"{option_label(*options.tensor_types[0])}: types by pattern need a recipe that quantises, and "
            f"{recipe.name} does not; take the one that most tensors should have, such as q8_0"
        )
    chooser = _Chooser(recipe, model, [name for name, _ in tensors], quantized, options, has_imatrix)
    chosen = {}
    # The order matters: the n-th attn_v is the n-th in llama-quantize's order, whatever the file's.
    for name, shape in sorted(tensors, key=lambda tensor: file_order(tensor[0])):
        if is_quantizable(name, shape, model.architecture):
            chosen[name] = chooser.choose(name, shape)
        else:
            type = _kept_type(recipe, name, shape) if kept is None else kept[name]
            chosen[name] = Choice(type, type)
    choices = {name: chosen[name] for name, _ in tensors}
    if not has_imatrix:
        _refuse_without_importance(recipe, choices)
    if not options.fallback:
        _refuse_fallbacks(choices)
    return choices


def _kept_type(recipe: Recipe, name: str, shape: tuple[int, ...]) -> TensorType:
    return T.F32 if recipe.quantizes or is_always_f32(name, shape) else recipe.default


class _Chooser:
    """Chooses for one quantisable tensor after the other; they must come in `file_order`."""

    def __init__(
        self,
        recipe: Recipe,
        model: ModelShape,
        names: Sequence[str],
        quantized: Mapping[str, TensorType],
        options: TypeOptions,
        has_imatrix: bool,
    ) -> None:
        self._recipe = recipe
        self._model = model
        self._quantized = quantized
        self._options = options
        self._has_imatrix = has_imatrix
        self._is_tied = "output.weight" not in names
        self._n_attn_v = sum(role_of(name) is Role.ATTN_V for name in names)
        self._n_met: Counter[Role] = Counter()

    def choose(self, name: str, shape: tuple[int, ...]) -> Choice:
        role = role_of(name)
        wanted, option = self._wanted(name, shape, role)
        type, reason = _fall_back(wanted, shape[-1])
        # As tensor_requires_imatrix in llama-quant.cpp, for the types that llmkit writes.
        needs_importance = (
            self._recipe.name == "q2_k_s" and type is T.Q2_K and role not in (Role.OUTPUT, Role.TOKEN_EMBD)
        )
        return Choice(type, wanted, reason, option, needs_importance)

    def _wanted(self, name: str, shape: tuple[int, ...], role: Role) -> tuple[TensorType, str]:
        """The type that options and recipe ask for, and the option if one decided."""
        options, default = self._options, self._recipe.default
        pattern = options.pattern_for(name)
        # The table of per-layer embeddings follows the token embedding's option unless a pattern names it.
        named_table = name == PER_LAYER_TOKEN_EMBD and pattern is not None
        if role is Role.TOKEN_EMBD and options.token_embedding_type is not None and not named_table:
            return options.token_embedding_type, options.token_embedding_label
        if role is Role.OUTPUT and options.output_type is not None:
            return options.output_type, options.output_label
        if pattern is not None:
            return pattern[1], option_label(*pattern)
        if name in self._quantized:
            return self._quantized[name], ""
        if options.pure or not self._recipe.quantizes:
            return default, ""
        if self._keeps_q8_0(name):
            return T.Q8_0, ""
        if role is Role.OUTPUT or (role is Role.TOKEN_EMBD and self._is_tied):
            if options.output_type is not None:
                return options.output_type, options.output_label
            return self._output_type(), ""
        if self._recipe.name == "mxfp4_moe":
            return T.MXFP4 if self._holds_experts(shape, role) else T.Q8_0, ""
        return mixed_type(self._recipe, role, self._place(name, role)), ""

    def _output_type(self) -> TensorType:
        """The type of the matrix that computes the logits, be it the token embedding."""
        if self._model.architecture == "falcon" or self._recipe.name == "mxfp4_moe":
            return T.Q8_0
        return T.Q8_0 if self._recipe.default is T.Q8_0 else T.Q6_K

    def _keeps_q8_0(self, name: str) -> bool:
        sensitive = ("attn_q_a", "attn_q_b", "nextn.eh_proj")
        return self._model.architecture == "glm5-next" and any(part in name for part in sensitive)

    def _holds_experts(self, shape: tuple[int, ...], role: Role) -> bool:
        """Whether the matrix holds one slice per expert; bailingmoe3 has others of three dimensions."""
        if len(shape) < 3 or shape[-3] < 2:
            return False
        return self._model.architecture != "bailingmoe3" or role in (Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN)

    def _place(self, name: str, role: Role) -> Place:
        """Where the tensor stands among those of its role that no option decided."""
        rank = self._n_met[role]
        self._n_met[role] += 1
        n = self._model.n_layers if role is Role.FFN_DOWN else self._n_attn_v
        # With experts a block may hold several: the name tells the block.
        if role is Role.FFN_DOWN and self._model.n_experts > 1:
            block = block_number(name)
            if block is None or block >= n:
                raise UnsupportedError(
                    f"tensor {name!r}: expected blk.<i> with i below {n}, the number of blocks; is the model's "
                    "block_count right?"
                )
            rank = block
        return Place(rank, n, self._model, self._has_imatrix)


# A 256-weight type that does not divide the row -> the 32-weight type that takes its place (`tensor_type_fallback`).
_FALLBACKS: Final = {
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
    T.IQ4_XS: T.IQ4_NL,
}


def _fall_back(wanted: TensorType, columns: int) -> tuple[TensorType, str]:
    """The type that rows of `columns` weights can have, and why it is not the wanted one."""
    block = BLOCK_LAYOUTS[wanted].block_size
    if columns % block == 0:
        return wanted, ""
    chosen = _FALLBACKS.get(wanted, wanted)
    if columns % BLOCK_LAYOUTS[chosen].block_size:
        chosen = T.F16
    return chosen, f"rows of {columns} weights are not a multiple of {block}"


def _refuse_without_importance(recipe: Recipe, choices: Mapping[str, Choice]) -> None:
    name = next((name for name, choice in choices.items() if choice.needs_importance), None)
    if name is not None:
        raise UnsupportedError(
            f"{recipe.name} needs an importance matrix (for tensor {name!r} and others): give one, which "
            "`llmkit imatrix` computes, or take q2_k"
        )


def _refuse_fallbacks(choices: Mapping[str, Choice]) -> None:
    changed = [
        f"{name}: {choice.reason}, which {choice.wanted.name} needs"
        for name, choice in choices.items()
        if choice.type is not choice.wanted
    ]
    if changed:
        listed = "\n  ".join(changed[:8] + [f"and {len(changed) - 8} more"] * (len(changed) > 8))
        raise UnsupportedError(
            f"{len(changed)} tensors cannot have the type they should:\n  {listed}\n"
            "Allow fallbacks, take a type of blocks that divide these rows, or give these tensors a type by pattern"
        )


def unused_options(choices: Mapping[str, Choice], options: TypeOptions) -> tuple[str, ...]:
    """A sentence for every option that decided no tensor's type, so that a plan can note it."""
    deciding = {choice.option for choice in choices.values()}
    notes = []
    for pattern, type in options.tensor_types:
        label = option_label(pattern, type)
        if label not in deciding:
            matching = [name for name in choices if pattern.search(name)]
            why = (
                f"{matching[0]} is not quantised, or another option decides"
                if matching
                else "no tensor has a name with that pattern"
            )
            notes.append(f"{label} was not used: {why}")
    if options.output_type is not None and options.output_label not in deciding:
        notes.append(f"{options.output_label} was not used: there is no output.weight, and other options decide")
    if options.token_embedding_type is not None and options.token_embedding_label not in deciding:
        notes.append(f"{options.token_embedding_label} was not used: there is no token_embd.weight")
    return tuple(notes)
