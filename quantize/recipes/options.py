"""What a user may ask for beside the recipe, and how it is written on a command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from llmkit.errors import UnsupportedError
from llmkit.quantize.recipes.table import WRITABLE_TYPES
from llmkit.types import TensorType

T = TensorType

_WRITABLE_NAMES: Final = ", ".join(type.name.lower() for type in TensorType if type in WRITABLE_TYPES)

_NOT_FOR_WEIGHTS: Final = frozenset({T.I8, T.I16, T.I32, T.I64, T.F64, T.Q8_1})


@dataclass(frozen=True, slots=True)
class TypeOptions:
    """What a user asks for beside the recipe; a type that llmkit cannot write raises UnsupportedError.

    `pure`: every quantisable tensor gets the recipe's main type. `tensor_types`: patterns searched in the names, and
    types; the first that matches wins. `output_type`, `token_embedding_type`: the types of these matrices.
    `fallback`: false makes it an error if a tensor cannot have the type it should.
    """

    pure: bool = False
    tensor_types: tuple[tuple[re.Pattern[str], TensorType], ...] = ()
    output_type: TensorType | None = None
    token_embedding_type: TensorType | None = None
    fallback: bool = True

    def __post_init__(self) -> None:
        named = (*(type for _, type in self.tensor_types), self.output_type, self.token_embedding_type)
        for type in named:
            if type is not None:
                require_writable(type)

    def pattern_for(self, name: str) -> tuple[re.Pattern[str], TensorType] | None:
        """The first of `tensor_types` whose pattern occurs in the tensor name `name`."""
        return next((option for option in self.tensor_types if option[0].search(name)), None)

    @property
    def output_label(self) -> str:
        """The option `output_type` as notes and errors name it."""
        return f"output type {_name(self.output_type)}"

    @property
    def token_embedding_label(self) -> str:
        """The option `token_embedding_type` as notes and errors name it."""
        return f"token embedding type {_name(self.token_embedding_type)}"


def option_label(pattern: re.Pattern[str], type: TensorType) -> str:
    """One of `tensor_types` as the user wrote it."""
    return f"{pattern.pattern}={_name(type)}"


def _name(type: TensorType | None) -> str:
    return "" if type is None else type.name.lower()


def parse_type(name: str) -> TensorType:
    """The type called `name`, in any case; raises UnsupportedError if there is none or llmkit cannot write it."""
    try:
        type = TensorType[name.upper()]
    except KeyError:
        raise UnsupportedError(f"unknown tensor type {name!r}; known: {_WRITABLE_NAMES}") from None
    return require_writable(type)


def require_writable(type: TensorType) -> TensorType:
    """`type`, if tensors can be encoded in it; else raises UnsupportedError."""
    if type not in WRITABLE_TYPES:
        verbs = "does not write" if type in _NOT_FOR_WEIGHTS else "reads but does not write"
        raise UnsupportedError(f"llmkit {verbs} {type.name}; it writes {_WRITABLE_NAMES}")
    return type


def parse_tensor_type(text: str) -> tuple[re.Pattern[str], TensorType]:
    """Pattern and type of `REGEX=TYPE`; raises UnsupportedError.

    Case does not matter, as for llama-quantize, which puts the pattern in lower case; the last `=` is the one that
    separates, so that a pattern may hold others.
    """
    pattern, _, type = text.rpartition("=")
    if not (pattern and type):
        raise UnsupportedError(f"tensor type {text!r}: expected REGEX=TYPE, such as attn_v=q8_0")
    # C++ regular expressions have [[:digit:]] and the like; Python would take them for sets of punctuation and letters.
    if "[:" in pattern:
        raise UnsupportedError(
            f"tensor type {text!r}: classes such as [:digit:] are not known here; write \\d for digits, \\w for words"
        )
    try:
        return re.compile(pattern, re.IGNORECASE | re.ASCII), parse_type(type)
    except re.error as error:
        raise UnsupportedError(f"tensor type {text!r}: {pattern!r} is no regular expression: {error}") from None
