"""Choosing the next token from logits: what llama.cpp's samplers do, for engines that hand their logits over."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from llmkit.protocols import SamplingOptions


class TokenChooser:
    """Repeat penalty, top-k, top-p, min-p, temperature, a draw by seed; with temperature 0 the most likely token.

    history: tokens before the first one to be chosen, for the repeat penalty. n_context: what `repeat_last_n` -1 means.
    """

    def __init__(self, options: SamplingOptions, *, n_context: int, history: Iterable[int]) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        last_n = n_context if options.repeat_last_n == -1 else options.repeat_last_n
        self._recent: deque[int] = deque(history if options.repeat_penalty != 1 else (), maxlen=last_n)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """A token id by its logits, float32 [n_vocab]; it counts as recent from then on."""
        options = self._options
        if self._recent:
            logits = self._penalised(logits)
        token = int(logits.argmax()) if options.temperature == 0 else self._drawn(logits)
        if options.repeat_penalty != 1:
            self._recent.append(token)
        return token

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        tokens = np.array(list(Counter(self._recent)))
        found = logits.copy()
        values = found[tokens]
        penalty = np.float32(self._options.repeat_penalty)
        found[tokens] = np.where(values > 0, values / penalty, values * penalty)
        return found

    def _drawn(self, logits: NDArray[np.float32]) -> int:
        options = self._options
        count = min(options.top_k or logits.size, logits.size)
        kept = np.argpartition(logits, logits.size - count)[logits.size - count :] if count < logits.size else None
        ids = np.arange(logits.size) if kept is None else kept
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        chances = _softmax(logits[ids].astype(np.float64))
        if options.top_p < 1:
            # The token that passes the limit is the last one that counts.
            last = int(np.searchsorted(np.cumsum(chances), options.top_p)) + 1
            ids, chances = ids[:last], chances[:last]
        if options.min_p > 0:
            likely = chances >= options.min_p * chances[0]
            ids = ids[likely]
        chances = _softmax(logits[ids].astype(np.float64) / options.temperature)
        return int(self._random.choice(ids, p=chances))


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max())
    found: NDArray[np.float64] = powers / powers.sum()
    return found
