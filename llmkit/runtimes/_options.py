"""Which options make sense: of sampling, and of loading a model, and what they come to."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Final

from llmkit.errors import EngineError
from llmkit.protocols import SamplingOptions

# llama.h: LLAMA_DEFAULT_SEED asks for a random seed, so it is not one that can be repeated.
_MAX_SEED: Final = 0xFFFFFFFE


def checked(options: SamplingOptions | None) -> SamplingOptions:
    """The options (the defaults if None) with a seed drawn if none was given.

    EngineError for what are no SamplingOptions, and for values that mean nothing.

    A `stop` that is one str is that one stop string, not each of its characters.
    """
    if options is None:
        options = SamplingOptions()
    if not isinstance(options, SamplingOptions):
        raise EngineError(f"options is of type {type(options).__name__}: expected SamplingOptions")
    for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "max_tokens"):
        value = getattr(options, name)
        kind = Real if name in ("temperature", "top_p", "min_p", "repeat_penalty") else Integral
        if not isinstance(value, kind) and not (value is None and name in ("seed", "max_tokens")):
            expected = "a number" if kind is Real else "an integer"
            raise EngineError(f"{name} is {value!r}: expected {expected}")
    given: Any = options.stop
    if not isinstance(given, str | Sequence):
        raise EngineError(f"stop is {given!r}: expected texts")
    stop = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(text, str) for text in stop):
        raise EngineError(f"stop is {options.stop!r}: expected texts")
    options = replace(options, stop=stop)
    problems = [
        (not math.isfinite(options.temperature) or options.temperature < 0, "temperature", "0 or more"),
        (options.top_k < 0, "top_k", "0 or more"),
        (not 0 < options.top_p <= 1, "top_p", "above 0 and at most 1"),
        (not 0 <= options.min_p <= 1, "min_p", "from 0 to 1"),
        (not math.isfinite(options.repeat_penalty) or options.repeat_penalty <= 0, "repeat_penalty", "above 0"),
        (options.repeat_last_n < -1, "repeat_last_n", "-1 (the whole context) or more"),
        (options.seed is not None and not 0 <= options.seed <= _MAX_SEED, "seed", f"from 0 to {_MAX_SEED}"),
        (options.max_tokens is not None and options.max_tokens < 0, "max_tokens", "0 or more"),
    ]
    for wrong, name, expected in problems:
        if wrong:
            raise EngineError(f"{name} is {getattr(options, name)}: expected {expected}")
    if options.seed is None:
        return replace(options, seed=secrets.randbelow(_MAX_SEED + 1))
    return options


def check_counts(**counts: int | None) -> None:
    """Raise EngineError, naming the option, for a number that is below 1 or more than 31 bits; None is none."""
    for name, value in counts.items():
        if value is not None and not 1 <= value < 2**31:
            raise EngineError(f"{name} is {value}: expected 1 or more")


def choose_cuda(device: str, has_cuda: Callable[[], bool], package: str, advice: str = "") -> str:
    """Of "auto", "cpu" and "cuda" what it comes to: "cpu" or "cuda".

    has_cuda is asked unless it is "cpu". Raises EngineError, with `advice` on the package, if there is no CUDA.
    """
    if device == "cpu":
        return device
    if has_cuda():
        return "cuda"
    if device == "cuda":
        raise EngineError(f"device cuda: this {package} has no CUDA, or there is no GPU; {advice}take --device cpu")
    return "cpu"
