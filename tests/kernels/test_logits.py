"""Reductions of logits against plain NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llmkit.kernels.logits import divergences, score_rows

Rows = NDArray[np.float32]


def scored(logits: Rows, targets: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    n, n_vocab = logits.shape
    totals, surprises, tops = np.empty(n), np.empty(n), np.empty(n, np.int64)
    score_rows(logits.reshape(-1), n_vocab, np.asarray(targets, np.int64), totals, surprises, tops)
    return totals, surprises, tops


def divergence(reference: Rows, logits: Rows) -> NDArray[np.float64]:
    targets = np.zeros(len(logits), np.int64)
    out = np.empty(len(logits))
    totals = scored(reference, targets)[0], scored(logits, targets)[0]
    divergences(reference.reshape(-1), logits.reshape(-1), logits.shape[1], *totals, out)
    return out


def log_softmax(logits: Rows) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


@pytest.mark.parametrize("n_vocab", [1, 2, 15, 16, 17, 511, 512, 513, 5000, 49152])
@pytest.mark.parametrize("spread", [0.1, 3, 30])
def test_against_float64(rng: np.random.Generator, n_vocab: int, spread: float) -> None:
    reference = (rng.standard_normal((7, n_vocab)) * spread).astype(np.float32)
    logits = (reference + rng.standard_normal((7, n_vocab)) * spread / 10).astype(np.float32)
    targets = rng.integers(0, n_vocab, 7)
    p, q = log_softmax(reference), log_softmax(logits)
    totals, surprises, tops = scored(logits, targets)
    np.testing.assert_allclose(surprises, -q[np.arange(7), targets], rtol=1e-6, atol=5e-7)
    np.testing.assert_allclose(totals, np.logaddexp.reduce(logits.astype(np.float64), axis=1), rtol=1e-7, atol=5e-7)
    assert tops.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(divergence(reference, logits), (np.exp(p) * (p - q)).sum(1), rtol=2e-5, atol=1e-6)


def test_small_divergences_are_not_lost_in_rounding(rng: np.random.Generator) -> None:
    reference = (rng.standard_normal((50, 32000)) * 4).astype(np.float32)
    logits = reference + (rng.standard_normal(reference.shape) * 3e-3).astype(np.float32)
    p, q = log_softmax(reference), log_softmax(logits)
    expected = (np.exp(p) * (p - q)).sum(1)
    assert 1e-6 < expected.mean() < 1e-5
    assert abs(divergence(reference, logits).mean() - expected.mean()) < 0.02 * expected.mean()


def test_identities(rng: np.random.Generator) -> None:
    logits = (rng.standard_normal((5, 1000)) * 5).astype(np.float32)
    assert (divergence(logits, logits) == 0).all()
    # The same distribution, of other logits.
    np.testing.assert_allclose(divergence(logits, logits + np.float32(7)), 0, atol=1e-6)
    uniform = np.full((3, 777), 2.5, np.float32)
    np.testing.assert_allclose(np.exp(scored(uniform, [0, 5, 776])[1]), 777, rtol=1e-6)


def test_the_first_of_the_most_likely(rng: np.random.Generator) -> None:
    logits = np.zeros((2, 100), np.float32)
    logits[0, [97, 40]] = 3
    assert scored(logits, [0, 0])[2].tolist() == [40, 0]


def test_what_is_no_number_shows() -> None:
    for place in (0, 3, 40):
        logits = np.ones((1, 41), np.float32)
        logits[0, place] = np.nan
        assert np.isnan(scored(logits, [1])[1]).all()
    logits = np.ones((1, 41), np.float32)
    logits[0, 5] = -np.inf  # a token that is ruled out
    found = scored(logits, [1])[1]
    np.testing.assert_allclose(found, np.log(40), rtol=1e-6)
    assert scored(logits, [5])[1] == np.inf


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(-1e4, 1e4, width=32))
)
def test_whatever_the_logits(logits: Rows) -> None:
    totals, surprises, _ = scored(logits, np.zeros(len(logits)))
    np.testing.assert_allclose(surprises, -log_softmax(logits)[:, 0], rtol=1e-6, atol=2e-6)
    assert np.isfinite(totals).all()
    assert (divergence(logits[::-1].copy(), logits) > -1e-3).all()
