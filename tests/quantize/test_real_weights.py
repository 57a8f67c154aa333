"""Every written type on rows of every tensor of two real models, against ggml; scripts/exact.py takes all rows."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.quantize.schemes import SCHEMES, scheme
from llmkit.types import TensorType
from tests import ggml
from tests.quantize.real_weights import minilm_tensors, rows_for, smollm2_tensors, some_importance

WRITTEN = [type for type in SCHEMES if scheme(type).encoder]


@pytest.fixture(scope="module")
def samples() -> list[NDArray[np.float32]]:
    """The first, a middle and the last row of each tensor."""
    tensors = smollm2_tensors() + minilm_tensors()
    assert len(tensors) == 272 + 103
    found = []
    for tensor in tensors:
        rows = tensor.read()
        assert rows.size == tensor.size
        found.append(rows[sorted({0, len(rows) // 2, len(rows) - 1})])
    return found


@pytest.mark.parametrize("type", WRITTEN, ids=lambda type: type.name)
def test_encodes_every_tensor_as_ggml(type: TensorType, samples: list[NDArray[np.float32]]) -> None:
    by_columns: dict[int, list[NDArray[np.float32]]] = defaultdict(list)
    for sample in samples:
        rows = rows_for(type, sample)
        by_columns[rows.shape[1]].append(rows)
    for columns, parts in by_columns.items():
        rows = np.concatenate(parts)
        for importance in (None, some_importance(type.name, columns)) if scheme(type).uses_importance else (None,):
            packed = np.empty((len(rows), scheme(type).row_bytes(columns)), np.uint8)
            scheme(type).encode(rows, packed, importance)
            np.testing.assert_array_equal(packed, ggml.quantize(type, rows, importance))
