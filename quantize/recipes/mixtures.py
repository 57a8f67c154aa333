"""The mixtures: in which places a recipe spends more or fewer bits than its main type takes.

Most recipes store the attention's values, its output and the second FFN matrix ("down"), which lose most by
quantisation, in more bits: everywhere or in some of the blocks. The rules are llama-quantize's (llama.cpp,
src/llama-quant.cpp, `llama_tensor_get_type_impl`), as a table of recipes here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from llmkit.quantize.recipes.table import Recipe
from llmkit.quantize.recipes.tensors import Role
from llmkit.types import TensorType

T = TensorType


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The facts about a model that the choices depend on.

    `n_layers` counts all blocks (`block_count`), heads are those of the first block where they differ, `architecture`
    is `general.architecture`.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0
    architecture: str = "llama"

    @property
    def heads_per_kv_head(self) -> int:
        """How many query heads share one head of keys and values; 0 without such heads."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes this for a 70B model (the `load_arch_hparams` of these architectures)."""
        if self.architecture in ("llama", "llama-embed"):
            return self.n_layers == 80 and self.n_heads != self.n_kv_heads
        return _LAYERS_OF_70B.get(self.architecture) == self.n_layers


_LAYERS_OF_70B: Final = {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: the `rank`-th of `n` of its role, in which model, with an importance matrix or not."""

    rank: int
    n: int
    model: ModelShape
    has_imatrix: bool

    def is_in_first(self, share: int) -> bool:
        """Whether the tensor is among the first `n / share`."""
        return self.rank < self.n // share

    @property
    def gets_more_bits(self) -> bool:
        """The first and the last eighth, and every third between them."""
        first = self.n // 8
        return self.rank < first or self.rank >= 7 * self.n // 8 or (self.rank - first) % 3 == 2

    @property
    def has_small_values(self) -> bool:
        """Whether attn_v is so small (one head for four or more of the queries) that more bits cost little."""
        return self.model.heads_per_kv_head >= 4


# The type that a place gets, or None for the recipe's main type.
Rule = Callable[[Place], TensorType | None]


def _everywhere(type: TensorType | None) -> Rule:
    return lambda place: type


def _if_small_values(type: TensorType, otherwise: TensorType | None = None) -> Rule:
    return lambda place: type if place.has_small_values else otherwise


def _more_bits(type: TensorType) -> Rule:
    return lambda place: type if place.gets_more_bits else None


def _first(share: int, type: TensorType, otherwise: Rule = lambda place: None) -> Rule:
    return lambda place: type if place.is_in_first(share) else otherwise(place)


def _first_ranks(count: int, type: TensorType, otherwise: TensorType | None = None) -> Rule:
    return lambda place: type if place.rank < count else otherwise


def _with_imatrix(rule: Rule) -> Rule:
    return lambda place: rule(place) if place.has_imatrix else None


def _without_imatrix(rule: Rule) -> Rule:
    return lambda place: None if place.has_imatrix else rule(place)


_MAIN_TYPE: Final = _everywhere(None)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A recipe's rules per role; `attn_output_of_8` is the one for attn_output in models of eight experts."""

    attn_v: Rule = _MAIN_TYPE
    ffn_down: Rule = _MAIN_TYPE
    attn_output: Rule = _MAIN_TYPE
    attn_output_of_8: Rule = _MAIN_TYPE


_IQ4: Final = Mixture(
    attn_v=_if_small_values(T.Q5_K),
    ffn_down=_without_imatrix(_first(8, T.Q5_K)),
    attn_output_of_8=_everywhere(T.Q5_K),
)

_MIXTURES: Final[dict[str, Mixture]] = {
    "q2_k": Mixture(
        attn_v=_if_small_values(T.Q4_K, otherwise=T.Q3_K),
        ffn_down=_everywhere(T.Q3_K),
        attn_output=_everywhere(T.Q3_K),
        attn_output_of_8=_everywhere(T.Q5_K),
    ),
    "q2_k_s": Mixture(attn_v=_if_small_values(T.Q4_K), ffn_down=_first(8, T.Q4_K)),
    "q3_k_s": Mixture(attn_output_of_8=_everywhere(T.Q5_K)),
    "q3_k_m": Mixture(
        attn_v=_first_ranks(2, T.Q5_K, otherwise=T.Q4_K),
        ffn_down=_first(16, T.Q5_K, otherwise=_everywhere(T.Q4_K)),
        attn_output=_everywhere(T.Q4_K),
        attn_output_of_8=_everywhere(T.Q5_K),
    ),
    "q3_k_l": Mixture(attn_v=_everywhere(T.Q5_K), ffn_down=_everywhere(T.Q5_K), attn_output=_everywhere(T.Q5_K)),
    "q4_k_s": Mixture(attn_v=_first_ranks(4, T.Q5_K), ffn_down=_first(8, T.Q5_K), attn_output_of_8=_everywhere(T.Q5_K)),
    "q4_k_m": Mixture(attn_v=_more_bits(T.Q6_K), ffn_down=_more_bits(T.Q6_K), attn_output_of_8=_everywhere(T.Q5_K)),
    "q5_k_m": Mixture(attn_v=_more_bits(T.Q6_K), ffn_down=_more_bits(T.Q6_K)),
    "iq4_nl": _IQ4,
    "iq4_xs": _IQ4,
    # Without an imatrix Q4_1 and Q5_1 themselves go wrong in these blocks.
    "q4_0": Mixture(ffn_down=_with_imatrix(_first(8, T.Q4_1))),
    "q5_0": Mixture(ffn_down=_with_imatrix(_first(8, T.Q5_1))),
}

# Falcon's exceptions.
_FALCON_FFN_DOWN: Final[dict[str, Rule]] = {
    "q3_k_m": _first(16, T.Q5_K, otherwise=_more_bits(T.Q4_K)),
    "q3_k_l": _everywhere(T.Q4_K),
    "q4_k_s": _MAIN_TYPE,
    "q4_k_m": _first(16, T.Q6_K, otherwise=_more_bits(T.Q5_K)),
}
_FALCON_ATTN_OUTPUT: Final[dict[str, Rule]] = {"q3_k_l": _everywhere(T.Q4_K)}


def _mixture(recipe: str, architecture: str) -> Mixture:
    mixture = _MIXTURES.get(recipe, Mixture())
    if architecture != "falcon":
        return mixture
    attn_output = _FALCON_ATTN_OUTPUT.get(recipe, _MAIN_TYPE)
    ffn_down = _FALCON_FFN_DOWN.get(recipe, mixture.ffn_down)
    return Mixture(mixture.attn_v, ffn_down, attn_output, attn_output)


def mixed_type(recipe: Recipe, role: Role, place: Place) -> TensorType:
    """The type that `recipe` gives to a tensor of `role` at `place`; mxfp4_moe is not a mixture of places."""
    model = place.model
    mixture = _mixture(recipe.name, model.architecture)
    eight_experts = model.n_experts == 8
    if eight_experts and role in (Role.ATTN_V, Role.ATTN_K):
        return T.Q8_0  # small beside eight experts
    rule = _MAIN_TYPE
    if role is Role.ATTN_V:
        rule = mixture.attn_v
    elif role is Role.FFN_DOWN:
        rule = mixture.ffn_down
    elif role is Role.ATTN_OUTPUT:
        rule = mixture.attn_output_of_8 if eight_experts else mixture.attn_output
    chosen = rule(place)
    if chosen is None:
        chosen = recipe.default
    # Eight query heads share each attn_v of a 70B model: a small matrix, so more bits cost next to nothing.
    if role is Role.ATTN_V and model.is_70b and chosen in (T.Q3_K, T.Q4_K):
        return T.Q5_K
    return chosen
