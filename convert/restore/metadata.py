"""Typed access to the metadata of a GGUF file, which may be anybody's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from llmkit.convert.archs import excerpt
from llmkit.convert.gguf_source import GGUFSource
from llmkit.errors import FormatError
from llmkit.formats.gguf import Value

_LARGEST: Final = 2**31 - 1
_LARGEST_FLOAT: Final = float(np.finfo(np.float32).max)


class MetadataReader:
    """An architecture's keys, given without its name in front: a wrong value becomes an error that names the key.

    A key that is missing is None.
    """

    def __init__(self, source: GGUFSource, architecture: str) -> None:
        self.path = source.path
        self.prefix = f"{architecture}."
        self.values: Mapping[str, Value] = {
            key.removeprefix(self.prefix): value
            for key, value in source.metadata.items()
            if key.startswith(self.prefix)
        }

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def integer(self, key: str) -> int | None:
        """A number from 0 to 2^31 - 1; of one for each block the largest (see `differs_by_block`)."""
        data = self._data(key)
        if isinstance(data, tuple) and data and all(map(_is_count, data)):
            return int(max(data))
        if data is None:
            return None
        if _is_count(data):
            return int(data)
        raise self.error(key, f"an integer from 0 to {_LARGEST}")

    def differs_by_block(self, key: str) -> bool:
        """Whether a number is stated for each block, and not the same for all."""
        data = self._data(key)
        return isinstance(data, tuple) and len(set(data)) > 1

    def required(self, key: str) -> int:
        """The same as `integer`, which must be there."""
        found = self.integer(key)
        if found is None:
            raise FormatError(self.path, f"metadata {self.prefix}{key} must be a number, found None")
        return found

    def number(self, key: str) -> float | None:
        """A number that float32 holds, written with as few digits as give the same float32."""
        data = self._data(key)
        if data is None:
            return None
        if isinstance(data, bool) or not isinstance(data, int | float) or not abs(data) <= _LARGEST_FLOAT:
            raise self.error(key, "a number that float32 holds")
        return shortest(data)

    def boolean(self, key: str) -> bool | None:
        """True or false."""
        data = self._data(key)
        if data is None or isinstance(data, bool):
            return data
        raise self.error(key, "true or false")

    def text(self, key: str) -> str | None:
        """A string."""
        data = self._data(key)
        if data is None or isinstance(data, str):
            return data
        raise self.error(key, "a string")

    def flags(self, key: str, count: int) -> tuple[bool, ...] | None:
        """One for each of `count` blocks; a number n stands for all but every n-th (llama.cpp, `set_swa_pattern`)."""
        data = self._data(key)
        if data is None:
            return None
        if isinstance(data, tuple) and len(data) == count and all(flag in (0, 1) for flag in data):
            return tuple(bool(flag) for flag in data)
        if _is_count(data):
            return tuple(data == 0 or (i + 1) % data != 0 for i in range(count))
        raise self.error(key, f"{count} of true or false")

    def error(self, key: str, expected: str) -> FormatError:
        """The error for a value of another kind."""
        found = self._data(key)
        shown = excerpt(list(found[:40]) if isinstance(found, tuple) else found)
        return FormatError(self.path, f"metadata {self.prefix}{key} must be {expected}, found {shown}")

    def _data(self, key: str) -> Any:
        value = self.values.get(key)
        return None if value is None else value.data


def _is_count(data: Any) -> bool:
    return isinstance(data, int) and not isinstance(data, bool) and 0 <= data <= _LARGEST


def shortest(value: float) -> float:
    """The number of fewest digits that is the same in float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def share_of(rotated: int, head_dim: int) -> float:
    """The share of `head_dim` dimensions that is `rotated`, so that rounding down gives `rotated` again."""
    share = rotated / head_dim
    return share if int(head_dim * share) == rotated else math.nextafter(share, 2)
