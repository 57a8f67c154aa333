"""Views against NumPy's own, and reading tensors through them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.convert.chunks import Buffers, cut
from llmkit.convert.plan import ConversionPlan, PlannedFile, PlannedTensor, Stored
from llmkit.convert.sources import open_inputs, read_rows
from llmkit.convert.transforms import View
from llmkit.types import TensorInfo, TensorType

SHAPE = (4, 6, 8)
NUMBERS = np.arange(np.prod(SHAPE)).reshape(SHAPE)


def elements(view: View) -> list[int]:
    """The stored elements that a view shows, in its order."""
    found = np.full(view.shape, view.offset)
    for place, (size, stride) in enumerate(view.axes):
        shape = [1] * len(view.axes)
        shape[place] = size
        found = found + (np.arange(size) * stride).reshape(shape)
    return found.ravel().tolist()  # type: ignore[no-any-return]


VIEWS = {
    "whole": (lambda v: v, lambda a: a),
    "split": (lambda v: v.split(1, 2, -1), lambda a: a.reshape(4, 2, 3, 8)),
    "swapped": (lambda v: v.split(1, 2, 3).swap(1, 2), lambda a: a.reshape(4, 2, 3, 8).swapaxes(1, 2)),
    "transposed": (lambda v: v.swap(-1, -2), lambda a: a.swapaxes(-1, -2)),
    "every second": (lambda v: v.part(1, 1, step=2), lambda a: a[:, 1::2]),
    "backwards": (lambda v: v.part(1, 5, None, -1), lambda a: a[:, 5::-1]),
    "first rows gone": (lambda v: v.part(0, 2), lambda a: a[2:]),
    "one of two": (lambda v: v.split(1, 2, -1).at(1, 1), lambda a: a.reshape(4, 2, 3, 8)[:, 1]),
    "last": (lambda v: v.at(0, -1), lambda a: a[-1]),
    "transposed, every second": (
        lambda v: v.swap(1, 2).part(1, 0, step=2),
        lambda a: a.swapaxes(1, 2)[:, ::2],
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_numpys(name: str) -> None:
    ours, theirs = VIEWS[name]
    expected = theirs(NUMBERS)
    view = ours(View.of(SHAPE))
    assert view.shape == expected.shape
    assert elements(view) == expected.ravel().tolist()
    assert view.is_contiguous == (elements(view) == list(range(view.offset, view.offset + view.n_elements)))
    matrix = view.matrix(expected.shape[-1])
    starts = matrix.row_starts(0, matrix.n_rows)
    rows = starts[:, None] + np.arange(matrix.columns.size) * matrix.columns.stride
    assert rows.tolist() == expected.reshape(-1, expected.shape[-1]).tolist()


def test_what_does_not_fit_is_refused() -> None:
    view = View.of(SHAPE)
    for action in (lambda: view.split(1, 4, -1), lambda: view.split(1, 2, 2), lambda: view.at(0, 4)):
        with pytest.raises(ValueError, match=r"axis"):
            action()
    with pytest.raises(ValueError, match="do not lie in order"):
        view.split(1, 2, 3).swap(1, 2).matrix(16)


@pytest.mark.parametrize("name", VIEWS)
@given(budget=st.integers(200, 4000), dtype=st.sampled_from(["F32", "F16", "BF16"]))
def test_reading_through_a_view(name: str, budget: int, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the chunks: the bytes are those of NumPy's view."""
    stored = NUMBERS.astype(np.float32) if dtype == "F32" else NUMBERS.astype(np.uint16)
    path = tmp_path_factory.getbasetemp() / f"{dtype}.bin"
    if not path.exists():
        path.write_bytes(b"header" + stored.tobytes())
    info = TensorInfo("t", dtype, SHAPE, path, 6, stored.nbytes)
    ours, theirs = VIEWS[name]
    expected = theirs(stored)
    parts = (Stored(info, ours(View.of(SHAPE))),) * 2  # a stack of two
    shape = (2 * expected.shape[0], *expected.shape[1:])
    type = TensorType[dtype]
    tensor = PlannedTensor("t", shape, type, parts, 0, 2 * expected.nbytes, wanted=type)
    plan = ConversionPlan(path, "", "", "", (PlannedFile(b"", (tensor,), 0),), ())
    found = []
    with open_inputs([tensor]) as inputs:
        for chunk in cut(plan, budget):
            assert chunk.first_row == sum(len(rows) for rows in found)
            found.append(read_rows(chunk, inputs, Buffers()).copy())
    assert b"".join(rows.tobytes() for rows in found) == 2 * np.ascontiguousarray(expected).tobytes()
