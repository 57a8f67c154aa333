"""Rotary position embedding as config.json describes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.convert.archs.config import ConfigReader, excerpt, positive
from llmkit.errors import FormatError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Rope:
    """Base `theta`, and the scaling that stretches it beyond the trained context.

    `scaling` is Hugging Face's rope_type ("default", "linear", "dynamic", "llama3", "longrope", "yarn"); `parameters`
    are that type's own settings as they stand in config.json, which is at `path`. `share` of each head is rotated.
    """

    path: Path
    theta: float
    scaling: str
    parameters: dict[str, Any]
    share: float = 1.0

    def require(self, *scalings: str) -> None:
        """Refuse a scaling that the architecture's graph does not compute. Raises UnsupportedError."""
        if self.scaling not in scalings:
            raise UnsupportedError(
                f"{self.path}: rope_type {excerpt(self.scaling)}; llama.cpp computes this architecture with "
                f"{' or '.join(scalings)} only"
            )

    def factors(self, key: str, count: int) -> tuple[float, ...]:
        """A scaling parameter that is a list of `count` positive numbers."""
        values = self.parameters.get(key)
        name = f"rope scaling {self.scaling!r}: {key}"
        if not isinstance(values, list) or len(values) != count:
            found = f"{len(values)} entries" if isinstance(values, list) else excerpt(values)
            raise FormatError(self.path, f"{name} must be a list of {count} numbers, found {found}")
        return tuple(positive(self.path, f"{name}[{i}]", value) for i, value in enumerate(values))

    def number(self, key: str, default: float | None = None) -> float:
        """A positive scaling parameter; required unless a default is given."""
        value = self.parameters.get(key)
        if value is None and default is not None:
            return default
        return positive(self.path, f"rope scaling {self.scaling!r}: {key}", value)

    def without_factors(self) -> Rope:
        """The same, for a graph that has no place for factors of frequencies; UnsupportedError if they are needed."""
        if self.scaling in ("llama3", "longrope"):
            raise UnsupportedError(
                f"{self.path}: rope_type {excerpt(self.scaling)}; llama.cpp does not compute it for this architecture"
            )
        return self

    def n_rotated(self, head_dim: int) -> int:
        """How many of a head's dimensions are rotated."""
        return int(head_dim * self.share)


def read_rope(
    config: ConfigReader, *, theta: float = 10000.0, share: float | None = None, layers: str | None = None
) -> Rope:
    """Rotary settings from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    theta, share: where config.json says nothing; without a `share` the architecture rotates whole heads only. layers:
    the kind of layer to read for, such as "full_attention", where rope_parameters may differ by layer.
    """
    newer, older = (config.object(key) for key in ("rope_parameters", "rope_scaling"))
    if newer and older and newer != older:
        raise FormatError(config.path, "rope_parameters and rope_scaling contradict each other; keep the right one")
    parameters = dict(newer or older)
    if layers is not None and isinstance(parameters.get(layers), dict):
        parameters = dict(parameters[layers])
    found = parameters.pop("rope_theta", None)
    if found is None:
        found = config.values.get("rope_theta")
    older_name = parameters.pop("type", None)
    scaling = parameters.pop("rope_type", None)
    if scaling is None:
        scaling = "default" if older_name is None else older_name
    if not isinstance(scaling, str):
        raise FormatError(config.path, f"rope_type must be a string, found {excerpt(scaling)}")
    nested = [key for key, value in parameters.items() if isinstance(value, dict)]
    if nested:
        raise FormatError(
            config.path, f"rope_parameters differ by layer ({excerpt(nested[0])}); this architecture has one kind"
        )
    if parameters.get("original_max_position_embeddings") is None:
        parameters["original_max_position_embeddings"] = config.values.get("original_max_position_embeddings")
    return Rope(
        config.path,
        positive(config.path, "rope_theta", theta if found is None else found),
        scaling,
        parameters,
        _share(config, parameters, share),
    )


def _share(config: ConfigReader, parameters: dict[str, Any], default: float | None) -> float:
    """The share of a head that is rotated: partial_rotary_factor, in either place."""
    key = "partial_rotary_factor"
    found = parameters.get(key)
    if found is None:
        found = config.values.get(key)
    if found is None:
        return 1.0 if default is None else default
    share = positive(config.path, key, found)
    if share > 1 or (default is None and share != 1):
        allowed = "must be at most 1" if share > 1 else "this architecture rotates whole heads"
        raise FormatError(config.path, f"{key} {excerpt(found)}: {allowed}")
    return share


def write_rope(rope: Rope | None) -> dict[str, Any]:
    """`read_rope` backwards, in the form that every version of transformers reads."""
    if rope is None:
        return {}
    scaling = None
    if rope.scaling != "default":
        scaling = {"rope_type": rope.scaling, **{k: v for k, v in rope.parameters.items() if v is not None}}
    found: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": scaling}
    if rope.share != 1:
        found["partial_rotary_factor"] = rope.share
    return found
