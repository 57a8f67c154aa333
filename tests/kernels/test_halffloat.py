"""Conversions between float widths: every 16-bit value, every rounding boundary, every array length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.kernels import halffloat

ALL_HALVES = np.arange(1 << 16, dtype=np.uint16)


def around(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values and their neighbours in float32, of both signs."""
    down, up = np.nextafter(values, np.float32(-np.inf)), np.nextafter(values, np.float32(np.inf))
    near = np.concatenate([down, values, up])
    return np.concatenate([near, -near])


def midpoints(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Halfway between each value and the next: where rounding changes its mind, and ties are."""
    return ((values[:-1] + values[1:]) / 2).astype(np.float32)


def converted(convert: Callable[[Any, Any], None], src: NDArray[Any], dtype: type) -> NDArray[Any]:
    out: NDArray[Any] = np.zeros(src.size, dtype)
    convert(src, out)
    return out


def test_widens_every_float16() -> None:
    found = converted(halffloat.f16_to_f32, ALL_HALVES, np.float32)
    expected = ALL_HALVES.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))
    # NumPy may or may not quieten a signalling NaN, with the processor; here it is always quiet.
    quiet = expected[nan].view(np.uint32) | np.uint32(0x400000)
    np.testing.assert_array_equal(found[nan].view(np.uint32), quiet)


def test_widens_every_bfloat16() -> None:
    found = converted(halffloat.bf16_to_f32, ALL_HALVES, np.float32)
    np.testing.assert_array_equal(found.view(np.uint32), ALL_HALVES.astype(np.uint32) << 16)


def test_rounds_to_float16_at_every_boundary() -> None:
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    edges = midpoints(np.append(finite, 65536.0))  # from the last midpoint on, values become infinite
    src = np.concatenate([around(edges), around(finite.astype(np.float32))])
    with np.errstate(over="ignore"):
        expected = src.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(converted(halffloat.f32_to_f16, src, np.uint16), expected)


def test_rounds_to_float16_what_lies_far_outside() -> None:
    src = np.array([1e-45, -1e-45, 1e-38, 2.0**-26, 1e5, -3.4e38, np.inf, -np.inf], np.float32)
    expected = np.array([0, 0x8000, 0, 0, 0x7C00, 0xFC00, 0x7C00, 0xFC00], np.uint16)
    np.testing.assert_array_equal(converted(halffloat.f32_to_f16, src, np.uint16), expected)


def test_rounds_to_bfloat16_at_every_boundary() -> None:
    finite = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    edges = midpoints(np.append(finite, 2.0**128))
    src = np.concatenate([around(edges), around(finite.astype(np.float32))])
    # The nearest bfloat16, by search; of two equally near the one with an even last bit.
    magnitude = np.abs(src.astype(np.float64))
    values = np.append(finite, 2.0**128)  # one step beyond the largest stands for infinity
    above = np.searchsorted(values, magnitude)
    below = np.maximum(above - 1, 0)
    nearer_below = (magnitude - values[below]) - (values[above] - magnitude)
    expected = np.where((nearer_below < 0) | ((nearer_below == 0) & (below % 2 == 0)), below, above)
    expected = expected.astype(np.uint16) | (np.signbit(src).astype(np.uint16) << 15)
    np.testing.assert_array_equal(converted(halffloat.f32_to_bf16, src, np.uint16), expected)


def test_nan_stays_nan() -> None:
    words = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF, 0x7FBFFFFF], np.uint32)
    src = words.view(np.float32)
    f16 = np.where(words >> 31, 0xFE00, 0x7E00)
    np.testing.assert_array_equal(converted(halffloat.f32_to_f16, src, np.uint16), f16)
    np.testing.assert_array_equal(converted(halffloat.f32_to_bf16, src, np.uint16), words >> 16 | 64)


def test_narrows_float64() -> None:
    rng = np.random.default_rng(0)
    src = rng.standard_normal(1000) * 10.0 ** rng.uniform(-48, 40, 1000)
    src[:4] = [np.inf, -np.inf, 1 + 2.0**-24, 1e300]
    with np.errstate(over="ignore"):
        expected = src.astype(np.float32)
    found = converted(halffloat.f64_to_f32, src, np.float32)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("convert", "source", "target"),
    [
        (halffloat.bf16_to_f32, np.uint16, np.float32),
        (halffloat.f16_to_f32, np.uint16, np.float32),
        (halffloat.f32_to_bf16, np.float32, np.uint16),
        (halffloat.f32_to_f16, np.float32, np.uint16),
        (halffloat.f64_to_f32, np.float64, np.float32),
    ],
)
class TestArrays:
    def test_every_length(self, convert: Callable[[Any, Any], None], source: type, target: type) -> None:
        """Each value is converted alike wherever it stands, and nothing is written beyond the end."""
        values: NDArray[Any] = np.arange(1, 71).astype(source)
        whole = converted(convert, values, target)
        assert np.unique(whole).size == 70
        for size in range(70):
            out: NDArray[Any] = np.full(size + 16, 77, target)
            convert(values[:size], out[:size])
            np.testing.assert_array_equal(out[:size], whole[:size])
            assert (out[size:] == 77).all()

    def test_unaligned_and_read_only(self, convert: Callable[[Any, Any], None], source: type, target: type) -> None:
        values: NDArray[Any] = np.arange(1, 41).astype(source)
        buffer = np.concatenate([np.zeros(1, np.uint8), values.view(np.uint8)])
        buffer.flags.writeable = False
        np.testing.assert_array_equal(
            converted(convert, buffer[1:].view(source), target), converted(convert, values, target)
        )

    def test_refuses_other_shapes(self, convert: Callable[[Any, Any], None], source: type, target: type) -> None:
        with pytest.raises(ValueError, match="one length"):
            convert(np.zeros(32, source), np.zeros(16, target))
        with pytest.raises(ValueError, match="flat"):
            convert(np.zeros((2, 16), source), np.zeros((2, 16), target))
        with pytest.raises(TypeError):
            convert(np.zeros(32, np.int8), np.zeros(32, target))
        with pytest.raises(TypeError):
            convert(np.zeros(64, source)[::2], np.zeros(32, target))
