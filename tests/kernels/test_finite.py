"""The first value that is not finite, wherever it stands."""

from __future__ import annotations

import numpy as np
import pytest

from llmkit.kernels.finite import first_nonfinite

LARGEST = np.finfo(np.float32).max


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 300])
def test_finds_each_position(bad: float, size: int) -> None:
    for at in range(size):
        values = np.full(size, LARGEST, np.float32)
        values[at] = bad
        assert first_nonfinite(values) == at


def test_returns_the_first_of_several() -> None:
    values = np.zeros(1000, np.float32)
    values[[999, 700, 701]] = [np.nan, np.inf, np.nan]
    assert first_nonfinite(values) == 700


@pytest.mark.parametrize("size", [0, 1, 64, 127, 4096])
def test_extremes_are_finite(size: int) -> None:
    values = np.resize(np.array([LARGEST, -LARGEST, 1e-45, -0.0, 0, 1], np.float32), size)
    assert first_nonfinite(values) == -1


def test_smallest_nan_counts() -> None:
    values = np.full(100, 0x7F800001, np.uint32).view(np.float32)
    assert first_nonfinite(values) == 0


def test_refuses_a_matrix() -> None:
    with pytest.raises(ValueError, match="flat"):
        first_nonfinite(np.zeros((2, 2), np.float32))
