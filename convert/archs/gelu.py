"""GELU under its names in config.json, and what llama.cpp makes of it."""

from __future__ import annotations

from typing import Final

from llmkit.convert.archs.config import ConfigReader

# By the integral of the normal distribution, and by the tanh that comes near it, which llama.cpp computes for both.
_EXACT: Final = ("gelu", "gelu_python")
NAMES: Final = (*_EXACT, "gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh")


def notes(config: ConfigReader, key: str, default: str) -> tuple[str, ...]:
    """That llama.cpp approximates GELU, for a model that computes it exactly; `default` is for a missing `key`."""
    found = config.values.get(key) or default
    if found not in _EXACT:
        return ()
    return (f"{key} {found!r}: llama.cpp computes GELU by its tanh approximation, within 0.0005 of the exact value",)
