"""Typed access to a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmkit.errors import FormatError, UnsupportedError

# What float32, the type of numbers in GGUF metadata, can hold.
_SMALLEST: Final = 1e-37
_LARGEST: Final = 3.4e38


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
        return positive(self.path, key, self._get(key, default))

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise FormatError(self.path, f"{key} must be true or false, found {excerpt(value)}")
        return value

    def require(self, key: str, allowed: tuple[object, ...], default: object) -> None:
        """Refuse a config whose `key` says something that the family's graph does not compute.

        default: what a missing key means. Raises UnsupportedError.
        """
        value = self.values.get(key)
        if value is None:
            value = default
        if value not in allowed:
            raise UnsupportedError(
                f"{self.path}: {key} is {excerpt(value)}; this architecture is computed with "
                f"{' or '.join(map(str, allowed))} only"
            )

    def require_boolean(self, key: str, wanted: bool) -> None:
        """Refuse a config whose switch `key`, if it is there, is not as the family's graph has it."""
        found = self.boolean(key, wanted)
        if found is not wanted:
            raise self.unsupported(key, found, f"llama.cpp computes this architecture with {wanted} only")

    def unsupported(self, key: str, found: object, reason: str) -> UnsupportedError:
        """The error for a value that is valid, but that the family's graph does not compute."""
        return UnsupportedError(f"{self.path}: {key} is {excerpt(found)}; {reason}")

    def object(self, key: str) -> dict[str, Any]:
        """An object, empty if it is missing."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise FormatError(self.path, f"{key} must be an object, found {excerpt(value)}")
        return value or {}

    def within(self, key: str) -> ConfigReader:
        """The config that stands under `key`, such as that of a multimodal model's text part.

        Whether embeddings are tied is what the whole model says, if it does: transformers ties by that.
        """
        tied = {name: self.values[name] for name in ("tie_word_embeddings",) if name in self}
        return ConfigReader(self.path, {**self.object(key), **tied})

    def filled(self, defaults: dict[str, Any]) -> ConfigReader:
        """The same config, with `defaults` for what it says nothing about."""
        stated = {key: value for key, value in self.values.items() if value is not None or key not in defaults}
        return ConfigReader(self.path, {**defaults, **stated})

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            raise FormatError(self.path, f"{key} is missing")
        return default


def plainest(value: float, stated: Callable[[float], float]) -> float:
    """The number of fewest digits for which `stated`, what a file says for it, is as for `value` in float32."""
    wanted = np.float32(stated(value))
    candidates = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next((number for number in candidates if number and np.float32(stated(number)) == wanted), value)


def excerpt(value: object, length: int = 60) -> str:
    """A value from a file as it may stand in a message: escaped, and not longer than `length`."""
    text = repr(value[: 2 * length] if isinstance(value, str | list) else value)
    return text if len(text) <= length else text[:length] + "..."


def positive(path: Path, key: str, value: object) -> float:
    """`value` as a positive number that float32 holds. Raises FormatError, naming `key`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and _SMALLEST <= value <= _LARGEST:
        return float(value)
    raise FormatError(path, f"{key} must be a positive number that float32 holds, found {excerpt(value)}")
