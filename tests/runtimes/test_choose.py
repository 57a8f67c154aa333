"""The choice of the next token against llama.cpp's samplers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmkit.protocols import SamplingOptions
from llmkit.runtimes._choose import TokenChooser

LOGITS = np.array([1.0, 3.0, 2.5, -1.0, 2.9, 0.0], np.float32)


def choose(options: SamplingOptions, times: int = 1, history: tuple[int, ...] = ()) -> list[int]:
    chooser = TokenChooser(options, n_context=64, history=history)
    return [chooser.choose(LOGITS) for _ in range(times)]


def test_greedy() -> None:
    assert choose(SamplingOptions(temperature=0, repeat_penalty=1)) == [1]


def test_repeat_penalty_divides_and_multiplies() -> None:
    options = SamplingOptions(temperature=0, repeat_penalty=2.0)
    # 3 / 2 is less than 2.9; then 2.9 / 2 is less than 2.5; then 1.5 is the largest again.
    assert choose(options, 4) == [1, 4, 2, 1]
    assert choose(options, 1, history=(1, 4)) == [2]
    assert choose(SamplingOptions(temperature=0, repeat_penalty=2.0, repeat_last_n=1), 3, history=(1, 4)) == [1, 4, 1]
    assert choose(SamplingOptions(temperature=0, repeat_penalty=2.0, repeat_last_n=0), 2) == [1, 1]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2, "top_p": 1, "min_p": 0}, {1, 4}),
        ({"top_k": 0, "top_p": 0.6, "min_p": 0}, {1, 4}),
        ({"top_k": 0, "top_p": 1, "min_p": 0.5}, {1, 2, 4}),
        ({"top_k": 0, "top_p": 1, "min_p": 0}, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_which_tokens_may_come(options: dict[str, float], kept: set[int]) -> None:
    found = Counter(choose(SamplingOptions(temperature=3.0, repeat_penalty=1, seed=1, **options), 600))  # type: ignore[arg-type]
    assert set(found) == kept


def test_frequencies_are_those_of_the_softmax() -> None:
    options = SamplingOptions(temperature=0.8, top_k=0, top_p=1, min_p=0, repeat_penalty=1, seed=3)
    found = Counter(choose(options, 20000))
    powers = np.exp(LOGITS.astype(np.float64) / 0.8)
    for token, chance in enumerate(powers / powers.sum()):
        assert found[token] / 20000 == pytest.approx(chance, abs=0.015)


def test_the_seed_decides() -> None:
    options = SamplingOptions(temperature=1.0, seed=5)
    assert choose(options, 20) == choose(options, 20)
    assert choose(options, 20) != choose(SamplingOptions(temperature=1.0, seed=6), 20)
