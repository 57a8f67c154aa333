"""llama.cpp's sampler chain for our sampling options."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llmkit.protocols import SamplingOptions
from llmkit.runtimes._llama_context import Context


@contextmanager
def choosing(
    lib: Any, options: SamplingOptions, context: Context, *, n_vocab: int, history: Sequence[int]
) -> Iterator[Callable[[], int]]:
    """What chooses the next token: repeat penalty, top-k, top-p, min-p, temperature, draw by seed.

    With temperature 0: repeat penalty, then the most likely token. `history` holds the tokens before the first one to
    be generated, for the repeat penalty. The chain is freed when the block ends.
    """
    last_n = context.n_context if options.repeat_last_n == -1 else options.repeat_last_n
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
        yield lambda: int(lib.llama_sampler_sample(chain, context.pointer, -1))
    finally:
        lib.llama_sampler_free(chain)
