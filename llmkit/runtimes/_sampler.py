"""llama.cpp's sampler chain for our sampling options."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def sampler_chain(
    lib: Any, options: SamplingOptions, *, n_vocab: int, n_context: int, history: Iterable[int]
) -> Iterator[Any]:
    """A chain that chooses the next token: repeat penalty, top-k, top-p, min-p, temperature, draw by seed.

    With temperature 0: repeat penalty, then the most likely token. `history` holds the tokens before the first one to
    be generated, for the repeat penalty. The chain is freed when the block ends.
    """
    last_n = n_context if options.repeat_last_n == -1 else options.repeat_last_n
    penalise = options.repeat_penalty != 1 and last_n > 0
    samplers = []
    if penalise:
        samplers.append(lib.llama_sampler_init_penalties(n_vocab, last_n, options.repeat_penalty, 0.0, 0.0))
    if options.temperature == 0:
        samplers.append(lib.llama_sampler_init_greedy())
    else:
        if options.top_k > 0:
            samplers.append(lib.llama_sampler_init_top_k(options.top_k))
        if options.top_p < 1:
            samplers.append(lib.llama_sampler_init_top_p(options.top_p, 1))
        if options.min_p > 0:
            samplers.append(lib.llama_sampler_init_min_p(options.min_p, 1))
        samplers.append(lib.llama_sampler_init_temp(options.temperature))
        samplers.append(lib.llama_sampler_init_dist(options.seed))

    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    try:
        for sampler in samplers:  # the chain owns them from here on
            lib.llama_sampler_chain_add(chain, sampler)
        if penalise:
            for token in history:
                lib.llama_sampler_accept(chain, token)
        yield chain
    finally:
        lib.llama_sampler_free(chain)
