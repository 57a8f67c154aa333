"""The importance of columns: llama-quantize's arithmetic, and how a matrix is fitted to a model's tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmkit.errors import FormatError
from llmkit.quantize.imatrix import ImportanceMatrix, mean_squares

A = np.array([[1.0, 2.0, 4.0]], np.float32)


def matrix(**entries: np.ndarray) -> ImportanceMatrix:
    named = {name.replace("__", "."): values for name, values in entries.items()}
    return ImportanceMatrix(Path("m.gguf"), ("text",), 2, 512, named, {})


def test_means_are_single_precision_divisions() -> None:
    rng = np.random.default_rng(1)
    sums = (rng.random((3, 64), np.float32) * np.float32(1e6)).astype(np.float32)
    counts = np.array([3, 7 * 512, (1 << 24) + 3], np.int64)
    means = mean_squares(sums, counts)
    assert means.dtype == np.float32
    for row, total, count in zip(means, sums, counts, strict=True):
        for mean, value in zip(row, total, strict=True):
            assert mean == np.float32(value) / np.float32(count)


def test_experts_without_data_get_ones() -> None:
    means = mean_squares(np.array([[0, 0], [4, 8]], np.float32), np.array([0, 4], np.int64))
    assert means.tolist() == [[1, 1], [1, 2]]


def test_an_entry_takes_the_form_of_its_tensor() -> None:
    stack = np.arange(6, dtype=np.float32).reshape(1, 6)
    importance = matrix(a__weight=A, b__weight=stack)
    found = importance.of("a.weight", (10, 3))
    assert found is not None
    assert found.tolist() == A.tolist()
    experts = importance.of("b.weight", (2, 10, 3))
    assert experts is not None
    assert experts.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert importance.of("c.weight", (10, 3)) is None


def test_a_wrong_length_is_refused_and_an_embeddings_is_ignored() -> None:
    importance = matrix(a__weight=A, token_embd__weight=A)
    with pytest.raises(FormatError, match=r"'a\.weight'.*3 values.*4 columns.*another model's"):
        importance.of("a.weight", (10, 4))
    with pytest.raises(FormatError, match=r"2 experts with 3 columns"):
        importance.of("a.weight", (2, 10, 3))
    assert importance.of("token_embd.weight", (10, 4)) is None


def test_coverage_names_what_does_not_fit() -> None:
    importance = ImportanceMatrix(
        Path("m.gguf"), (), 0, 0, {"a.weight": np.ones((4, 3), np.float32), "z.weight": A}, {"a.weight": (1, 3)}
    )
    coverage = importance.coverage([("a.weight", (4, 5, 3)), ("output.weight", (9, 3))])
    assert coverage.missing == ("output.weight",)
    assert coverage.partial == {"a.weight": (2, 4)}
    assert coverage.unused == ("z.weight",)
    notes = coverage.notes()
    assert "no data for output.weight: quantised without importance" in notes[0]
    assert "a.weight (2 of 4)" in notes[1]
    assert "z.weight" in notes[2]


def test_full_coverage_needs_no_note() -> None:
    assert matrix(a__weight=A).coverage([("a.weight", (5, 3))]).notes() == []


def test_long_lists_are_shortened() -> None:
    importance = matrix(a__weight=A)
    names = [f"blk.{i}.x.weight" for i in range(30)]
    (note,) = importance.coverage([("a.weight", (5, 3)), *((name, (5, 3)) for name in names)]).notes()
    assert "blk.7.x.weight and 22 more" in note


def test_another_models_matrix_is_refused() -> None:
    with pytest.raises(FormatError, match=r"none of its 1 entries \(a\.weight, \.\.\.\).*another model's"):
        matrix(a__weight=A).coverage([("b.weight", (5, 3))])
