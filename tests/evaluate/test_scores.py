"""Statistics of scores against plain NumPy, and what must hold of them."""

from __future__ import annotations

import math

import numpy as np

from llmkit.evaluate.scores import Scores, compare, mean_of


def made(rng: np.random.Generator, n: int = 500) -> tuple[Scores, Scores]:
    reference = rng.gamma(2, 1.5, n)
    surprises = np.abs(reference + rng.normal(0.01, 0.1, n))
    tops = rng.integers(0, 50, n)
    other = np.where(rng.random(n) < 0.1, tops + 1, tops)
    return Scores(surprises, other, rng.gamma(0.5, 0.02, n)), Scores(reference, tops)


def test_perplexity(rng: np.random.Generator) -> None:
    scores, _ = made(rng)
    values = scores.surprises
    found = scores.perplexity
    assert math.isclose(found.value, math.exp(values.mean()), rel_tol=1e-12)
    assert math.isclose(found.error, found.value * values.std() / math.sqrt(len(values) - 1), rel_tol=1e-9)


def test_divergence(rng: np.random.Generator) -> None:
    scores, reference = made(rng)
    assert scores.kl is not None
    found = compare(scores, reference)
    n = len(scores.kl)
    assert found.mean_kl == mean_of(scores.kl)
    assert found.kl_percentiles[100.0] == scores.kl.max()
    assert found.kl_percentiles[50.0] == np.median(scores.kl)
    assert math.isclose(found.kl_percentiles[99.0], np.quantile(scores.kl, 0.99))
    same = (scores.tops == reference.tops).mean()
    assert math.isclose(found.same_top.value, same)
    assert math.isclose(found.same_top.error, math.sqrt(same * (1 - same) / (n - 1)))
    delta = np.exp(-scores.surprises) - np.exp(-reference.surprises)
    assert math.isclose(found.mean_delta_p.value, delta.mean())
    assert math.isclose(found.rms_delta_p.value, math.sqrt((delta**2).mean()))
    assert found.delta_p_percentiles[0.0] == delta.min()
    assert math.isclose(found.correlation, np.corrcoef(scores.surprises, reference.surprises)[0, 1], rel_tol=1e-9)
    # The ratio's error is that of the mean of the differences, since both models scored the same tokens.
    differences = scores.surprises - reference.surprises
    assert math.isclose(found.ln_ratio.value, differences.mean(), rel_tol=1e-9)
    assert math.isclose(found.ln_ratio.error, differences.std() / math.sqrt(n - 1), rel_tol=1e-6)
    assert math.isclose(found.ratio.value, scores.perplexity.value / reference.perplexity.value, rel_tol=1e-9)
    assert math.isclose(found.difference.value, scores.perplexity.value - reference.perplexity.value, rel_tol=1e-9)


def test_a_model_beside_itself(rng: np.random.Generator) -> None:
    _, reference = made(rng)
    found = compare(Scores(reference.surprises, reference.tops, np.zeros(len(reference.tops))), reference)
    assert (found.mean_kl.value, found.same_top.value, found.rms_delta_p.value, found.ratio.value) == (0, 1, 0, 1)
    assert (found.ln_ratio.value, found.ln_ratio.error, found.rms_delta_p.error) == (0, 0, 0)
    assert math.isclose(found.correlation, 1, rel_tol=1e-9)


def test_surprises_too_large_for_an_exponential() -> None:
    scores = Scores(np.full(3, 1e5), np.zeros(3, np.int64))
    assert math.isfinite(scores.perplexity.value)
