"""Ranges and rounding of blocks against the sequential definitions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llmkit.kernels.blocks import BLOCK, bounds, largest_magnitude, reciprocal, rounded, signed_extreme
from llmkit.kernels.intlanes import store_i32
from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, INTS_OUT, kernel
from llmkit.kernels.lanes import LANES, load

Floats = NDArray[np.float32]


@kernel(FLOATS_IN, FLOATS_OUT)
def _measure(block: Floats, out: Floats) -> None:
    low, high = load(block, 0), load(block, LANES)
    out[0] = largest_magnitude(low, high)
    out[1] = signed_extreme(low, high)
    out[2], out[3] = bounds(low, high)
    out[4] = reciprocal(out[0])


@kernel(FLOATS_IN, INTS_OUT)
def _round(values: Floats, out: NDArray[np.int32]) -> None:
    for i in range(0, values.size, LANES):
        store_i32(out, i, rounded(load(values, i)))


def sequential(block: Floats) -> Floats:
    """One value after the other, a new one kept only if it is strictly beyond: -0 is not below +0."""
    extreme, minimum, maximum = np.float32(0), block[0], block[0]
    for value in block:
        extreme = value if abs(value) > abs(extreme) else extreme
        minimum = min(minimum, value)
        maximum = max(maximum, value)
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / abs(extreme) if extreme else np.float32(0)
    return np.array([abs(extreme), extreme, minimum, maximum, inverse], np.float32)


few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 2.0**-149, -(2.0**-149), 3e38, -3e38])
any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(block=st.one_of([hnp.arrays(np.float32, BLOCK, elements=e, fill=e) for e in (few, any_float)]))
def test_ranges_are_those_of_the_sequential_loop(block: Floats) -> None:
    out = np.zeros(5, np.float32)
    _measure(block, out)
    expected = sequential(block)
    if expected[3] == 0:
        out[3] = expected[3]  # the sign of a zero maximum is left open
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


def test_signs_of_zeros() -> None:
    """Two zeros are equal: the first is the minimum, and neither is an extreme."""
    for first, second in ((0.0, -0.0), (-0.0, 0.0)):
        block = np.full(BLOCK, second, np.float32)
        block[0] = first
        out = np.zeros(5, np.float32)
        _measure(block, out)
        assert not np.signbit(out[1])
        assert np.signbit(out[2]) == np.signbit(first)


def test_rounds_halves_away_from_zero() -> None:
    halves = np.arange(-200, 200, dtype=np.float32) / 2
    large = (2.0 ** np.arange(20, 31)).astype(np.float32)
    values = np.concatenate([halves, large, -large, large - np.float32(0.5), np.array([0.49999997], np.float32)])
    values = np.concatenate([values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(-99))])
    values = np.resize(values, -(-values.size // LANES) * LANES)
    out = np.zeros(values.size, np.int32)
    _round(values, out)
    exact = values.astype(np.float64)
    np.testing.assert_array_equal(out, np.copysign(np.floor(np.abs(exact) + 0.5), exact).astype(np.int32))


def test_what_no_int32_holds_becomes_the_lowest() -> None:
    values = np.full(LANES, np.nan, np.float32)
    values[:6] = [np.inf, -np.inf, 2.0**31, -(2.0**31), 3e38, -3e38]
    out = np.zeros(LANES, np.int32)
    _round(values, out)
    assert (out == np.iinfo(np.int32).min).all()
