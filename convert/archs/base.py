"""The vocabulary in which a model family is described.

A family is data: how its config.json is read into hyper-parameters, and one rule per kind of tensor, naming
its role, its shape and what must happen to its rows. What a target (GGUF now) makes of a role is the target's
business.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: base `theta` and the scaling that stretches it beyond the trained context.

    `scaling` is Hugging Face's rope_type ("default", "linear", "dynamic", "llama3", "yarn"); `parameters` are
    that type's own settings as they stand in config.json.
    """

    theta: float
    scaling: str
    parameters: dict[str, Any]

    def number(self, key: str, default: float) -> float:
        """A numeric scaling parameter, or `default` if it is absent."""
        value = self.parameters.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


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


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One kind of tensor: `pattern` is its checkpoint name, with `{i}` where the block number stands."""

    pattern: str
    role: str
    shape: Callable[[HParams], tuple[int, ...]]
    rows: Callable[[HParams], InterleaveHalves] | None = None
    optional: bool = False

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

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        """An integer in [minimum, maximum]; required unless a default is given."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise FormatError(self.path, f"{key} must be an integer from {minimum} to {maximum}, found {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number; required unless a default is given."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise FormatError(self.path, f"{key} must be a positive number, found {value!r}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise FormatError(self.path, f"{key} must be true or false, found {value!r}")
        return value

    def require(self, key: str, allowed: tuple[str, ...], default: str) -> None:
        """Refuse a config whose `key` names something that the family's graph does not compute."""
        value = self._get(key, default)
        if value not in allowed:
            raise FormatError(
                self.path, f"{key} is {value!r}; for this architecture {' or '.join(allowed)} is expected"
            )

    def rope(self, default_theta: float = 10000.0) -> Rope:
        """Rotary settings from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        parameters = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(parameters, dict):
            raise FormatError(self.path, f"rope_parameters must be an object, found {parameters!r}")
        parameters = dict(parameters)
        theta = parameters.pop("rope_theta", None) or self.values.get("rope_theta") or default_theta
        older_name = parameters.pop("type", None)
        scaling = parameters.pop("rope_type", None) or older_name or "default"
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < float("inf"):
            raise FormatError(self.path, f"rope_theta must be a positive number, found {theta!r}")
        if not isinstance(scaling, str):
            raise FormatError(self.path, f"rope_type must be a string, found {scaling!r}")
        if "original_max_position_embeddings" not in parameters:
            parameters["original_max_position_embeddings"] = self.values.get("original_max_position_embeddings")
        partial = parameters.get("partial_rotary_factor") or self.values.get("partial_rotary_factor") or 1.0
        if partial != 1.0:
            raise FormatError(self.path, f"partial_rotary_factor {partial!r}: this architecture rotates whole heads")
        return Rope(float(theta), scaling, parameters)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise FormatError(self.path, f"{key} is missing")
        return default
