"""Lanes against NumPy, which also rounds every operation on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.intlanes import mask_bits
from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, kernel, target
from llmkit.kernels.lanes import LANES, absolute, any_lane, load, select, splat, sqrt, store, transpose

Floats = NDArray[np.float32]

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.1, 3.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 2.0**-126, 3.4e38, -3.4e38, 1e-20, 7.0],
    np.float32,
)


@kernel(FLOATS_IN, FLOATS_IN, FLOATS_OUT)
def _arithmetic(left: Any, right: Any, out: Any) -> None:
    a, b = load(left, 0), load(right, 0)
    store(out, 0, a + b)
    store(out, 16, a - b)
    store(out, 32, a * b)
    store(out, 48, a / b)
    store(out, 64, -a)
    store(out, 80, sqrt(a))
    store(out, 96, absolute(a))
    store(out, 112, splat(left[3]))
    store(out, 128, select(a < b, a, b))
    # A contraction to a fused multiply-add would round once instead of twice.
    store(out, 144, a * b + a)


@kernel(FLOATS_IN, FLOATS_IN, target(types.int32))
def _comparisons(left: Any, right: Any, out: Any) -> None:
    a, b = load(left, 0), load(right, 0)
    out[0] = mask_bits(a < b)
    out[1] = mask_bits(a <= b)
    out[2] = mask_bits(a > b)
    out[3] = mask_bits(a == b)
    out[4] = mask_bits(a != b)
    out[5] = mask_bits((a < b) | (a == b))
    out[6] = mask_bits((a <= b) & ~(a == b))
    out[7] = any_lane(a < b)


@kernel(FLOATS_IN, types.int64, types.int64, FLOATS_OUT, types.int64)
def _transpose(values: Any, start: int, stride: int, out: Any, to: int) -> None:
    transpose(values, start, stride, out, to)


@pytest.fixture(params=range(20))
def pair(request: pytest.FixtureRequest) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(request.param)
    if request.param < 10:
        return rng.permutation(SPECIAL), rng.permutation(SPECIAL)
    left, right = rng.standard_normal((2, LANES), np.float32)
    right[::5] = left[::5]
    return left, right


def test_arithmetic(pair: tuple[Floats, Floats]) -> None:
    a, b = pair
    out = np.empty(160, np.float32)
    _arithmetic(a, b, out)
    with np.errstate(all="ignore"):
        expected = np.concatenate(
            [a + b, a - b, a * b, a / b, -a, np.sqrt(a), np.abs(a), np.full(16, a[3]), np.where(a < b, a, b), a * b + a]
        )
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(out), nan)
    np.testing.assert_array_equal(out[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_comparisons_are_false_for_nan_and_unequal_true(pair: tuple[Floats, Floats]) -> None:
    a, b = pair
    out = np.empty(8, np.int32)
    _comparisons(a, b, out)
    masks = [a < b, a <= b, a > b, a == b, a != b, a <= b, a < b]
    assert list(out[:7]) == [int((mask << np.arange(LANES)).sum()) for mask in masks]
    assert out[7] == (a < b).any()


@pytest.mark.parametrize(("start", "stride", "to"), [(0, 16, 0), (3, 32, 5), (1, 17, 16)])
def test_transpose(start: int, stride: int, to: int) -> None:
    values = np.random.default_rng(0).standard_normal(600, np.float32)
    out = np.full(300, 9, np.float32)
    _transpose(values, start, stride, out, to)
    rows = np.stack([values[start + stride * lane :][:LANES] for lane in range(LANES)])
    np.testing.assert_array_equal(out[to : to + 256].reshape(LANES, LANES), rows.T)
    assert (out[:to] == 9).all()
    assert (out[to + 256 :] == 9).all()


def test_a_float64_is_refused(tmp_path: Any) -> None:
    """It would hide a promotion that C does not make."""
    from numba.core.errors import TypingError

    def promote(out: Any) -> None:
        store(out, 0, splat(0.5))

    compiled: Callable[[Floats], None] = kernel(FLOATS_OUT)(promote)
    with pytest.raises(TypingError):
        compiled(np.empty(LANES, np.float32))
