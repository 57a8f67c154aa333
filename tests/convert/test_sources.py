"""Reading rows that are stored as columns: the right bytes, in few calls, within the budget."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.convert.chunks import BAND, PIECE_BYTES, Buffers, cut
from llmkit.convert.plan import ConversionPlan, PlannedFile, PlannedTensor, Stored
from llmkit.convert.sources import open_inputs, read_rows, read_values
from llmkit.convert.transforms import View
from llmkit.types import TensorInfo, TensorType

NUMBERS = np.arange(3 * BAND * 2100, dtype=np.uint32)


def transposed(path: Path, dtype: str, shape: tuple[int, int], step: int = 1) -> tuple[ConversionPlan, NDArray[Any]]:
    """A tensor whose rows are every `step`-th column of a stored one of `shape`, and what it must hold."""
    stored = NUMBERS[: shape[0] * shape[1]].reshape(shape).astype(np.uint32 if dtype == "F32" else np.uint16)
    path.write_bytes(b"header" + stored.tobytes())
    info = TensorInfo("t", dtype, shape, path, 6, stored.nbytes)
    view = View.of(shape).swap(0, 1).part(0, 0, None, step)
    expected = stored.T[::step]
    type = TensorType[dtype]
    tensor = PlannedTensor("t", expected.shape, type, (Stored(info, view),), 0, expected.nbytes, wanted=type)
    return ConversionPlan(path, "", "", "", (PlannedFile(b"", (tensor,), 0),), ()), np.ascontiguousarray(expected)


@pytest.mark.parametrize("budget", [6_000, 100_000, 10_000_000])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("n_stored", [1, BAND - 1, BAND, 2 * BAND + 5])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_columns_become_rows(dtype: str, n_stored: int, step: int, budget: int, tmp_path: Path) -> None:
    plan, expected = transposed(tmp_path / "stored", dtype, (n_stored, 300), step)
    with open_inputs(plan.tensors) as inputs:
        found = [read_rows(chunk, inputs, Buffers()).tobytes() for chunk in cut(plan, budget)]
    assert b"".join(found) == expected.tobytes()


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_call_reads_pieces_that_are_worth_it(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, expected = transposed(tmp_path / "stored", dtype, (3 * BAND, 2100))
    monkeypatch.setattr("llmkit.convert.chunks.CHUNK_WEIGHTS", 1000)
    sizes: list[int] = []
    preadv = os.preadv

    def counting(descriptor: int, buffers: Any, offset: int) -> int:
        sizes.append(sum(len(buffer) for buffer in buffers))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counting)
    with open_inputs(plan.tensors) as inputs:
        for chunk in cut(plan, 1 << 30):
            read_rows(chunk, inputs, Buffers())
    assert sum(sizes) == expected.nbytes
    assert len(sizes) <= 3 * BAND * -(-2100 * expected.itemsize // PIECE_BYTES)


@pytest.mark.parametrize("budget", [5_000, 50_000, 1_000_000])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("n_stored", [BAND // 2, 3 * BAND])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_buffers_stay_within_the_budget(dtype: str, n_stored: int, step: int, budget: int, tmp_path: Path) -> None:
    plan, _ = transposed(tmp_path / "stored", dtype, (n_stored, 2100), step)
    buffers = Buffers()
    with open_inputs(plan.tensors) as inputs:
        for chunk in cut(plan, budget):
            values = read_values(chunk, read_rows(chunk, inputs, buffers), buffers)
            buffers.get("packed", 4 * values.size)
    assert sum(array.size for array in buffers._arrays.values()) <= budget
