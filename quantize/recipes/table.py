"""The table of recipes: llama-quantize's file types whose tensors llmkit can write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmkit.errors import UnsupportedError
from llmkit.types import TensorType

T = TensorType

PLAIN_TYPES: Final = frozenset({T.F32, T.F16, T.BF16})

# Types that have an encoder; stated here so that planning need not import the schemes, which bring numba.
WRITABLE_TYPES: Final = PLAIN_TYPES | {
    *(T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0),
    *(T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K),
    *(T.IQ4_NL, T.IQ4_XS, T.MXFP4),
}


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


# Numbers from llama.h (`enum llama_ftype`).
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
        Recipe("iq4_nl", 25, T.IQ4_NL),
        Recipe("iq4_xs", 30, T.IQ4_XS),
        Recipe("mxfp4_moe", 38, T.MXFP4),
        Recipe("q3_k_l", 13, T.Q3_K),
        Recipe("q3_k_m", 12, T.Q3_K),
        Recipe("q3_k_s", 11, T.Q3_K),
        Recipe("q2_k", 10, T.Q2_K),
        Recipe("q2_k_s", 21, T.Q2_K),
    )
}

# llama-quantize too takes q3_k, q4_k and q5_k for the medium mixtures.
SHORT_NAMES: Final = {
    "q4": "q4_k_m",
    "q5": "q5_k_m",
    "q8": "q8_0",
    "q3_k": "q3_k_m",
    "q4_k": "q4_k_m",
    "q5_k": "q5_k_m",
}

# File types of llama-quantize that are mostly of a type without an encoder here.
_READ_ONLY: Final = frozenset(
    {
        *("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "iq3_s", "iq3_m"),
        *("tq1_0", "tq2_0", "q1_0", "q2_0", "nvfp4"),
    }
)


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`, in any case or by one of its `SHORT_NAMES`; raises UnsupportedError."""
    key = name.lower()
    key = SHORT_NAMES.get(key, key)
    if key not in RECIPES:
        problem = f"llmkit reads but does not write {key.upper()}" if key in _READ_ONLY else f"unknown type {name!r}"
        raise UnsupportedError(f"{problem}; known: {', '.join([*RECIPES, *SHORT_NAMES])}")
    return RECIPES[key]
