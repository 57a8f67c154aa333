"""The vocabulary in which a model family is described.

A family is data: how its config.json is read into hyper-parameters, and one rule per kind of tensor, naming
its role, its shape and what must happen to its rows. What a target (GGUF now) makes of a role is the target's
business.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError

# What float32, the type of numbers in GGUF metadata, can hold.
_SMALLEST, _LARGEST = 1e-37, 3.4e38


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: base `theta` and the scaling that stretches it beyond the trained context.

    `scaling` is Hugging Face's rope_type ("default", "linear", "dynamic", "llama3", "yarn"); `parameters` are
    that type's own settings as they stand in config.json, which is at `path`.
    """

    path: Path
    theta: float
    scaling: str
    parameters: dict[str, Any]

    def number(self, key: str, default: float | None = None) -> float:
        """A positive scaling parameter; required unless a default is given."""
        value = self.parameters.get(key)
        if value is None and default is not None:
            return default
        return _positive(self.path, f"rope scaling {self.scaling!r}: {key}", value)


@dataclass(frozen=True, slots=True)
class HParams:
    """Hyper-parameters of a decoder, in numbers of weights, heads, tokens."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    n_context: int
    rms_eps: float
    rope: Rope
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool


@dataclass(frozen=True, slots=True)
class InterleaveHalves:
    """Within each head, row j of the first half and row j of the second become rows 2j and 2j+1.

    Hugging Face rotates (j, j + head_dim/2), llama.cpp's `llama` graph rotates (2j, 2j + 1): the rows of the
    query and key projections are brought into that order.
    """

    head_dim: int

    def order(self) -> NDArray[np.intp]:
        """Source row of each output row within one head, intp [head_dim]."""
        return np.arange(self.head_dim).reshape(2, -1).T.ravel()


class Presence(Enum):
    """Whether a checkpoint holds a tensor, given its config."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    ABSENT = "absent"  # the model does not use it; if it is there all the same, config and weights disagree


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One kind of tensor: `pattern` is its checkpoint name, with `{i}` where the block number stands."""

    pattern: str
    role: str
    shape: Callable[[HParams], tuple[int, ...]]
    rows: Callable[[HParams], InterleaveHalves] | None = None
    presence: Callable[[HParams], Presence] = lambda hparams: Presence.REQUIRED

    @property
    def per_block(self) -> bool:
        return "{i}" in self.pattern


@dataclass(frozen=True, slots=True)
class Family:
    """A model family, named after config.json's `model_type`.

    `unused` are regular expressions of checkpoint tensors that inference does not need. `notes` says in words what
    the conversion cannot carry over for a given config.
    """

    model_type: str
    architectures: tuple[str, ...]
    gguf_architecture: str
    read_hparams: Callable[[ConfigReader], HParams]
    tensors: tuple[TensorRule, ...]
    unused: tuple[str, ...] = ()
    notes: Callable[[ConfigReader, HParams], tuple[str, ...]] = lambda config, hparams: ()

    def is_unused(self, name: str) -> bool:
        """Whether inference does without the checkpoint tensor `name`."""
        return any(re.fullmatch(pattern, name) for pattern in self.unused)


class ConfigReader:
    """Typed access to config.json: a wrong or missing value becomes an error that names the file and the key."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, maximum: int = 2**31 - 1) -> int:
        """An integer in [1, maximum]; required unless a default is given."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
            raise FormatError(self.path, f"{key} must be an integer from 1 to {maximum}, found {excerpt(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number that float32 holds; required unless a default is given."""
        return _positive(self.path, key, self._get(key, default))

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise FormatError(self.path, f"{key} must be true or false, found {excerpt(value)}")
        return value

    def require(self, key: str, allowed: tuple[str, ...], default: str) -> None:
        """Refuse a config whose `key` names something that the family's graph does not compute."""
        value = self._get(key, default)
        if value not in allowed:
            raise FormatError(
                self.path, f"{key} is {excerpt(value)}; this architecture computes {' or '.join(allowed)}"
            )

    def rope(self, default_theta: float = 10000.0) -> Rope:
        """Rotary settings from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        newer, older = (self._object(key) for key in ("rope_parameters", "rope_scaling"))
        if newer and older and newer != older:
            raise FormatError(self.path, "rope_parameters and rope_scaling contradict each other; keep the right one")
        parameters = dict(newer or older)
        theta = parameters.pop("rope_theta", None)
        if theta is None:
            theta = self._get("rope_theta", default_theta)
        older_name = parameters.pop("type", None)
        scaling = parameters.pop("rope_type", None)
        if scaling is None:
            scaling = "default" if older_name is None else older_name
        if not isinstance(scaling, str):
            raise FormatError(self.path, f"rope_type must be a string, found {excerpt(scaling)}")
        nested = [key for key, value in parameters.items() if isinstance(value, dict)]
        if nested:
            raise FormatError(
                self.path, f"rope_parameters differ by layer ({excerpt(nested[0])}); this architecture has one kind"
            )
        if parameters.get("original_max_position_embeddings") is None:
            parameters["original_max_position_embeddings"] = self.values.get("original_max_position_embeddings")
        for partial in (parameters.get("partial_rotary_factor"), self.values.get("partial_rotary_factor")):
            if partial is not None and partial != 1:
                raise FormatError(
                    self.path, f"partial_rotary_factor {excerpt(partial)}: this architecture rotates whole heads"
                )
        return Rope(self.path, _positive(self.path, "rope_theta", theta), scaling, parameters)

    def _object(self, key: str) -> dict[str, Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise FormatError(self.path, f"{key} must be an object, found {excerpt(value)}")
        return value or {}

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise FormatError(self.path, f"{key} is missing")
        return default


def excerpt(value: object, length: int = 60) -> str:
    """A value from a file as it may stand in a message: escaped, and not longer than `length`."""
    text = repr(value[: 2 * length] if isinstance(value, str | list) else value)
    return text if len(text) <= length else text[:length] + "..."


def _positive(path: Path, key: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and _SMALLEST <= value <= _LARGEST:
        return float(value)
    raise FormatError(path, f"{key} must be a positive number that float32 holds, found {excerpt(value)}")
