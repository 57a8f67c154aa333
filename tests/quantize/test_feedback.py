"""Rounding with feedback: its shares, every step of the kernel, and what it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.quantize.blockwise import BlockwiseFormat
from llmkit.quantize.feedback import DAMPING, Feedback, shares
from tests.quantize.cases import smollm2_rows
from tests.quantize.test_blockwise import decode, empty
from tests.quantize.test_blockwise_search import oracle

Rows = NDArray[np.float32]
F = np.float32
FORMATS = [BlockwiseFormat(4, size, symmetric) for size in (16, 32, 256) for symmetric in (True, False)]
each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


@pytest.fixture(scope="module")
def real_rows(smollm2_gguf: Path) -> Rows:
    return np.ascontiguousarray(smollm2_rows(smollm2_gguf)[::32])


def activations(columns: int, seed: int = 0) -> NDArray[np.float64]:
    """[tokens, columns] that go together in groups."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((4 * columns, max(1, columns // 8)))
    mixed = causes @ rng.standard_normal((causes.shape[1], columns))
    return mixed + 0.5 * mixed.std() * rng.standard_normal(mixed.shape)


def products_of(x: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    columns = x.shape[1]
    x = np.pad(x, ((0, 0), (0, -columns % width)))
    runs = x.reshape(len(x), -1, width).swapaxes(0, 1)
    return runs.swapaxes(1, 2) @ runs / len(x)


def encoded(form: BlockwiseFormat, rows: Rows, importance: Rows, carry: NDArray[np.float32]) -> Rows:
    arrays = empty(form, *rows.shape)
    form.encode_searched(rows, *arrays, importance=importance, carry=carry)
    return decode(form, arrays, rows.shape[1])


def test_shares_make_the_expected_error_smallest() -> None:
    """With the errors of earlier columns given, the best changes of the later ones solve a least-squares problem."""
    products = products_of(activations(12), 12)
    found = shares(products)[0].astype(np.float64)
    h = products[0] + DAMPING * np.diagonal(products[0]).mean() * np.eye(12)
    for i in range(12):
        # Column i is 1 too low by rounding; each later one is to be raised by minus its share.
        later = slice(i + 1, 12)
        raised = np.linalg.solve(h[later, later], h[later, i])
        np.testing.assert_allclose(-found[i, later], raised, rtol=1e-5, atol=1e-7)
    assert not np.tril(found).any()


@each_format
@pytest.mark.parametrize("width", [24, 64, 1000])
def test_every_step_is_the_oracles(real_rows: Rows, form: BlockwiseFormat, width: int) -> None:
    rows = np.ascontiguousarray(real_rows[:6, :328])
    columns = rows.shape[1]
    x = activations(columns)
    importance = (x**2).mean(0).astype(np.float32)
    carry = shares(products_of(x, min(width, columns)))
    width = carry.shape[-1]
    counts = np.maximum(importance / F(importance.mean(dtype=np.float64)), F(1e-5))
    expected = np.empty_like(rows)
    for r, row in enumerate(rows.copy()):
        for first in range(0, columns, form.block_size):
            part = slice(first, min(columns, first + form.block_size))
            scale, zero, _ = oracle(form, row[part], counts[part])
            inverse = F(1) / scale
            for at in range(part.start, part.stop):
                code = np.clip(np.rint(np.float64(row[at] * inverse) + zero), 0, 15).astype(np.float32)
                expected[r, at] = (code - zero) * scale
                error = row[at] - expected[r, at]
                stop = min(columns, (at // width + 1) * width)
                row[at + 1 : stop] -= error * carry[at // width, at % width, at % width + 1 :][: stop - at - 1]
    assert encoded(form, rows, importance, carry).tobytes() == expected.tobytes()


@each_format
def test_outputs_come_nearer(real_rows: Rows, form: BlockwiseFormat) -> None:
    rows = real_rows
    x = activations(rows.shape[1])
    importance = (x**2).mean(0).astype(np.float32)

    def error(width: int | None) -> float:
        carry = np.zeros((1, 512, 512), np.float32) if width is None else shares(products_of(x, width))
        return float(((x @ (encoded(form, rows, importance, carry) - rows).T) ** 2).mean())

    plain, narrow, whole = error(None), error(64), error(512)
    assert narrow < 0.95 * plain
    assert whole < 0.5 * plain


def test_without_shares_each_weight_is_rounded_for_itself(real_rows: Rows) -> None:
    form = BlockwiseFormat(4, 32, symmetric=False)
    importance = np.random.default_rng(1).gamma(0.5, 1, 512).astype(np.float32)
    arrays = empty(form, *real_rows.shape)
    form.encode_searched(real_rows, *arrays, importance=importance)
    none = encoded(form, real_rows, importance, np.zeros((8, 64, 64), np.float32))
    assert none.tobytes() == decode(form, arrays, 512).tobytes()


def test_rows_that_are_not_finite_stay_by_themselves(real_rows: Rows) -> None:
    form = BlockwiseFormat(4, 32, symmetric=True)
    rows = real_rows[:4].copy()
    x = activations(512)
    importance, carry = (x**2).mean(0).astype(np.float32), shares(products_of(x, 512))
    expected = encoded(form, rows, importance, carry)
    rows[1, 40], rows[2, 70] = np.nan, np.inf
    found = encoded(form, rows, importance, carry)
    assert found[[0, 3]].tobytes() == expected[[0, 3]].tobytes()
    assert np.isfinite(found).all()


def test_scaled_columns_are_those_of_divided_activations() -> None:
    x = activations(40)
    scales = np.random.default_rng(3).uniform(0.5, 2, 40).astype(np.float32)
    feedback = Feedback(lambda: products_of(x, 16).astype(np.float32), Path("m"), "w")
    other = shares(products_of(x / scales, 16))
    np.testing.assert_allclose(feedback.scaled(scales).carry(), other, rtol=1e-3, atol=1e-5)
    twice = feedback.scaled(scales).scaled(1 / scales)
    np.testing.assert_allclose(twice.carry(), feedback.carry(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("products", "message"),
    [
        (np.full((1, 2, 2), np.nan), "not finite"),
        (np.array([[[-1.0, 0], [0, 1]]]), "negative squares"),
        (np.array([[[1.0, 3], [3, 1]]]), "no activations have these products"),
    ],
)
def test_what_cannot_be_products(products: NDArray[np.float64], message: str) -> None:
    feedback = Feedback(lambda: products.astype(np.float32), Path("m.gguf"), "blk.0.x.weight")
    with pytest.raises(FormatError, match=rf"m\.gguf.*blk\.0\.x\.weight.*{message}"):
        feedback.carry()


def test_columns_that_met_nothing() -> None:
    assert not shares(np.zeros((2, 8, 8))).any()


def test_shares_of_another_matrix(real_rows: Rows) -> None:
    form = BlockwiseFormat(4, 32, symmetric=True)
    for carry in (np.zeros((9, 64, 64), np.float32), np.zeros((1, 600, 500), np.float32), np.zeros((1, 512, 512))):
        with pytest.raises(ValueError, match="is not for 512 columns"):
            encoded(form, real_rows, np.ones(512, np.float32), carry)
