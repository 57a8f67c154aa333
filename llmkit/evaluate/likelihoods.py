"""How likely a model finds given continuations of given tokens: what multiple choice and harness tasks are made of.

Continuations of the same tokens pass the model together where the engine can, and what two prompts share at their
beginning is processed once: prompts are taken in the order of their tokens, so that few-shot examples are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EvaluationError
from llmkit.evaluate.journal import NOTHING, Section
from llmkit.kernels.logits import score_rows
from llmkit.protocols import Session

Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of a continuation: ln p of all its tokens, and whether each is the most likely one in its place."""

    value: float
    is_greedy: bool


def likelihoods(session: Session, pairs: Sequence[Pair], kept: Section = NOTHING) -> Iterator[tuple[int, Likelihood]]:
    """The likelihood of every pair's second tokens after the first, with the pair's number; in another order.

    kept: where results are kept; what is there already comes first.

    Raises EvaluationError for logits that are no numbers, EngineError for what does not fit.
    """
    missing = []
    for number, (prefix, ids) in enumerate(pairs):
        match kept.get(list(prefix), list(ids)):
            case [float(value), bool(is_greedy)]:
                yield number, Likelihood(value, is_greedy)
            case _:
                missing.append(number)
    order = sorted(missing, key=lambda number: (list(pairs[number][0]), number))
    for prefix, numbers in groupby(order, lambda number: list(pairs[number][0])):
        group = list(numbers)
        # Fewest tokens first: those that pass together have about the same length.
        group.sort(key=lambda number: len(pairs[number][1]))
        rows = session.each_continuation(prefix, [pairs[number][1] for number in group])
        for number, logits in zip(group, rows, strict=True):
            found = _likelihood(session.info.name, logits, pairs[number][1])
            kept.put(list(prefix), list(pairs[number][1]), value=[found.value, found.is_greedy])
            yield number, found


def _likelihood(name: str, logits: NDArray[np.float32], ids: Sequence[int]) -> Likelihood:
    n, n_vocab = logits.shape
    targets = np.asarray(ids, np.int64)
    totals, surprises, tops = np.empty(n), np.empty(n), np.empty(n, np.int64)
    score_rows(np.ascontiguousarray(logits).reshape(-1), n_vocab, targets, totals, surprises, tops)
    if np.isnan(surprises).any():
        raise EvaluationError(f"{name}: its logits are not all numbers; its weights are damaged")
    return Likelihood(-float(surprises.sum()), bool((tops == targets).all()))
