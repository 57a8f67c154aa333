"""The search for scales and zero points of 4-bit blocks: against plain NumPy, step by step, and against rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llmkit.kernels.blockwise_search import FACTORS, SHIFTS, SYMMETRIC_FACTORS
from llmkit.quantize.blockwise import BLOCK_SIZES, BlockwiseFormat
from tests.quantize.cases import smollm2_rows
from tests.quantize.test_blockwise import Arrays, decode, empty, encode

Rows = NDArray[np.float32]
F = np.float32
FORMATS = [BlockwiseFormat(4, size, symmetric) for size in BLOCK_SIZES for symmetric in (True, False)]
each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


@pytest.fixture(scope="module")
def real_rows(smollm2_gguf: Path) -> Rows:
    return np.ascontiguousarray(smollm2_rows(smollm2_gguf)[::16])


def search(form: BlockwiseFormat, rows: Rows, importance: Rows | None = None, dtype: type = np.float32) -> Arrays:
    arrays = empty(form, *rows.shape, dtype)
    form.encode_searched(rows, *arrays, importance=importance)
    return arrays


def rounded(weights: Rows, inverse: Rows, zero: Rows) -> Rows:
    """Codes; the sum is exact in float64, as it is before it is rounded to a whole number."""
    return np.clip(np.rint((weights * inverse).astype(np.float64) + zero), 0, 15).astype(np.float32)


def oracle(form: BlockwiseFormat, block: Rows, counts: Rows) -> tuple[np.float32, np.float32, Rows]:
    """Scale, zero point and codes of one block."""
    minimum, maximum = min(F(0), block.min()), max(F(0), block.max())
    best_gain, best_scale, best_zero = F(0), F(0), F(8)
    if form.symmetric:
        span = (-maximum if maximum > -minimum else -minimum) / F(8)
        batches = [(np.array(SYMMETRIC_FACTORS), None)]
    else:
        span = (maximum - minimum) / F(15)
        batches = [(np.array(FACTORS[i : i + 16]), np.array(SHIFTS[i : i + 16])) for i in (0, 16)]
    for factors, shifts in batches:
        inverse = F(1) / span * (F(1) / factors)
        zero = np.full(16, 8, np.float32)
        if shifts is not None:
            zero = np.clip(rounded(-minimum, inverse, np.zeros(16)) + shifts, 0, 15).astype(np.float32)
        products, squares = np.zeros(16, np.float32), np.zeros(16, np.float32)
        for w, m in zip(block, counts, strict=True):
            q = rounded(w, inverse, zero) - zero
            products += m * q * w
            squares += m * q * q
        scales = products / squares
        gains = scales * products
        lane = int(np.argmax(np.where(gains > 0, gains, 0).view(np.int32) & ~15))
        if gains[lane] > best_gain:
            best_gain, best_scale, best_zero = gains[lane], scales[lane], zero[lane]
    inverse = F(1) / best_scale if best_scale else F(0)
    return best_scale, best_zero, rounded(block, inverse, best_zero)


@each_format
@pytest.mark.parametrize("weighed", [True, False])
def test_every_step_is_the_oracles(real_rows: Rows, form: BlockwiseFormat, weighed: bool) -> None:
    rows = np.ascontiguousarray(np.tile(real_rows[:3], 2)[:, : 2 * form.block_size + 24])
    columns = rows.shape[1]
    importance = np.random.default_rng(1).gamma(0.5, 1, columns).astype(np.float32) if weighed else None
    codes, scales, zeros = search(form, rows, importance)
    unpacked = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(rows), -1, form.block_size)
    for r, row in enumerate(rows):
        if importance is None:
            mean = F(sum(float(w) ** 2 for w in row) / columns)
            counts = np.sqrt(mean + row * row)
        else:
            counts = np.maximum(importance / F(importance.mean(dtype=np.float64)), F(1e-5))
        for b in range(form.n_blocks(columns)):
            part = slice(b * form.block_size, min(columns, (b + 1) * form.block_size))
            scale, zero, expected = oracle(form, row[part], counts[part])
            assert scales[r, b] == scale
            np.testing.assert_array_equal(unpacked[r, b, : len(expected)], expected.astype(np.uint8))
            assert (unpacked[r, b, len(expected) :] == zero).all()
            if zeros is not None:
                assert zeros[r, b // 2] >> b % 2 * 4 & 15 == zero


@each_format
def test_errors_are_smaller_than_those_of_rounding(real_rows: Rows, form: BlockwiseFormat) -> None:
    rows = real_rows
    importance = np.random.default_rng(2).gamma(0.5, 1, rows.shape[1]).astype(np.float32)

    def error(arrays: Arrays, weights: Rows) -> float:
        return float((weights * (decode(form, arrays, rows.shape[1]) - rows) ** 2).mean())

    nearest = encode(form, rows)
    plain = np.sqrt((rows**2).mean(1, keepdims=True) + rows**2)
    assert error(search(form, rows), plain) < 0.99 * error(nearest, plain)
    assert error(search(form, rows, importance), importance) < 0.9 * error(nearest, importance)


@each_format
def test_float16_scales(real_rows: Rows, form: BlockwiseFormat) -> None:
    rows = real_rows
    arrays = search(form, rows, dtype=np.float16)
    assert arrays[1].dtype == np.float16
    assert np.abs(decode(form, arrays, rows.shape[1]) - rows).max() < np.abs(rows).max() / 5


@each_format
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weighed", [True, False])
def test_a_block_with_what_is_no_number_becomes_zeros(form: BlockwiseFormat, bad: float, weighed: bool) -> None:
    rows = np.random.default_rng(3).standard_normal((2, 2 * form.block_size), np.float32)
    rows[1, 5] = bad
    arrays = search(form, rows, np.ones(rows.shape[1], np.float32) if weighed else None)
    found = decode(form, arrays, rows.shape[1])
    assert np.isfinite(found).all()
    assert not found[1, : form.block_size].any()
    assert found[0].any()


@given(
    rows=hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([1, 15, 32, 33, 64])),
                    elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    symmetric=st.booleans(),
)  # fmt: skip
def test_whatever_is_in_the_rows(rows: Rows, symmetric: bool) -> None:
    form = BlockwiseFormat(4, 32, symmetric)
    codes, scales, zeros = search(form, rows)
    again = search(form, rows)
    assert np.array_equal(codes, again[0])
    assert np.array_equal(scales.view(np.uint32), again[1].view(np.uint32))
    found = decode(form, (codes, scales, zeros), rows.shape[1])
    if np.isfinite(rows).all() and np.abs(rows).max(initial=0) < 1e18:
        normal = np.abs(rows).max(initial=0) > 1e-18  # smaller squares are no numbers in float32
        assert np.isfinite(found).all()
        assert not normal or np.abs(found - rows).max() <= np.abs(rows).max() * 1.01


def test_columns_that_never_counted(real_rows: Rows) -> None:
    form = BlockwiseFormat(4, 32, symmetric=True)
    rows = real_rows
    importance = np.zeros(rows.shape[1], np.float32)
    zeros = search(form, rows, importance)
    assert np.array_equal(zeros[0], search(form, rows)[0])
    importance[:32] = 1.0
    found = decode(form, search(form, rows, importance), rows.shape[1])
    assert np.abs(found[:, 64:] - rows[:, 64:]).max() < np.abs(rows).max() / 4


def test_arguments() -> None:
    rows = np.ones((2, 64), np.float32)
    with pytest.raises(ValueError, match="with 4 bits only"):
        search(BlockwiseFormat(8, 32, symmetric=True), rows)
    with pytest.raises(ValueError, match="importance of 64 columns"):
        search(BlockwiseFormat(4, 32, symmetric=True), rows, np.ones(63, np.float32))
