"""How fast an open session is: prompts of given lengths, and tokens one by one, behind a context of given depth.

The names are llama-bench's: pp512 is a prompt of 512 tokens that passes the model for its last token's logits, tg128
are 128 tokens that pass one after the other; `@ d1024` stands behind either where the cache holds 1,024 tokens before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmkit.errors import EvaluationError
from llmkit.protocols import SamplingOptions, Session

_GREEDY = SamplingOptions(temperature=0, max_tokens=1)


@dataclass(frozen=True, slots=True)
class Test:
    """`n_prompt` tokens of a prompt or `n_generated` one by one, behind `depth` tokens."""

    n_prompt: int
    n_generated: int
    depth: int

    @property
    def name(self) -> str:
        kind = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_generated}"
        return f"{kind} @ d{self.depth}" if self.depth else kind

    @property
    def n_tokens(self) -> int:
        """Tokens that the time is of."""
        return self.n_prompt or self.n_generated

    @property
    def n_context(self) -> int:
        """Positions that the test needs."""
        return self.depth + self.n_tokens + 1


def tests(prompts: Sequence[int], generated: Sequence[int], depths: Sequence[int]) -> list[Test]:
    """All combinations, in the order of the depths."""
    return [
        test
        for depth in depths
        for test in (*(Test(n, 0, depth) for n in prompts), *(Test(0, n, depth) for n in generated))
        if test.n_tokens
    ]


def seconds(session: Session, test: Test, tokens: Sequence[int], turn: int) -> float:
    """How long one run of a test takes.

    tokens: to be used, more than the test needs. turn: the number of the run: each begins elsewhere in `tokens`.

    Raises EvaluationError if the session does not do what is to be measured.
    """
    ids = _rotated(tokens, turn)
    return _prompt(session, test, ids) if test.n_prompt else _generation(session, test, ids)


def _rotated(tokens: Sequence[int], turn: int) -> list[int]:
    start = (7 * turn + 1) % len(tokens)
    return [*tokens[start:], *tokens[:start]]


def _prompt(session: Session, test: Test, ids: Sequence[int]) -> float:
    other = next((token for token in ids if token != ids[0]), ids[0])
    _exhaust(session.each_logits([other]))  # now the cache shares nothing with the prompt
    if test.depth:
        _exhaust(session.generate(ids[: test.depth], _GREEDY))
    _exhaust(session.generate(ids[: test.depth + test.n_prompt], _GREEDY))
    stats = session.stats
    if stats.n_prompt - stats.n_reused != test.n_prompt:
        raise EvaluationError(
            f"{session.info.name}: {test.name} cannot be measured: of {stats.n_prompt} tokens {stats.n_reused} were "
            "kept in the cache (a recurrent state or a sliding window keeps none); take depth 0"
        )
    return stats.prompt_seconds


def _generation(session: Session, test: Test, ids: Sequence[int]) -> float:
    passes = session.each_logits(ids[: test.depth + test.n_generated + 1], skip=test.depth, at_a_time=1)
    next(passes)  # the depth, and one token more
    started = time.perf_counter()
    _exhaust(passes)
    return time.perf_counter() - started


def _exhaust(parts: Iterator[object]) -> None:
    for _ in parts:
        pass
