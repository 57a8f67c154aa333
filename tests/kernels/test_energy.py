"""Sums of squares against NumPy's cumulated sums, which also add one value after the other."""

from __future__ import annotations

import numpy as np
import pytest

from llmkit.kernels.energy import find_mean_squares


@pytest.mark.parametrize("run", [16, 32, 256, 592])
@pytest.mark.parametrize("count", [0, 1, 3, 15, 16, 17, 35])
def test_mean_squares_are_added_in_order(run: int, count: int) -> None:
    weights = np.random.default_rng(run).standard_t(2, (count, run)).astype(np.float32)
    found = np.full(count, 7, np.float32)
    find_mean_squares(weights.reshape(-1), run, 2.0, found)
    sums = np.cumsum(weights * weights, axis=1, dtype=np.float32)[:, -1]
    np.testing.assert_array_equal(found, np.float32(2) * sums / np.float32(run))


def test_the_order_shows() -> None:
    """Small squares are lost beside a large one that comes first, and count where it comes last."""
    small = np.full(31, 2.0**-12, np.float32)
    rows = np.stack([np.append(np.float32(1), small), np.append(small, np.float32(1))])
    found = np.empty(2, np.float32)
    find_mean_squares(rows.reshape(-1), 32, 1.0, found)
    assert found[0] == np.float32(1 / 32)
    assert found[1] > np.float32(1 / 32)
