"""What only the K-quants have: searches in lanes, groups of superblocks, codes that survive a scale of zero."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from tests import ggml
from tests.quantize import kquant_oracle as oracle
from tests.quantize import symmetric_oracle
from tests.quantize.cases import CASES, IMPORTANCE, importance_of, rows_of
from tests.quantize.large_cases import COLUMNS, LARGE_CASES, large_rows

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]

KQUANTS = (TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K)
WEIGHTED = [type for type in KQUANTS if scheme(type).uses_importance]
each_kquant = pytest.mark.parametrize("type", KQUANTS, ids=lambda type: type.name)
each_weighted_kquant = pytest.mark.parametrize("type", WEIGHTED, ids=lambda type: type.name)

ORACLES: dict[TensorType, Callable[[Rows], bytes]] = {
    TensorType.Q2_K: oracle.encode_q2_k,
    TensorType.Q3_K: symmetric_oracle.encode_q3_k,
    TensorType.Q4_K: oracle.encode_q4_k,
    TensorType.Q5_K: oracle.encode_q5_k,
    TensorType.Q6_K: symmetric_oracle.encode_q6_k,
}


def encode(type: TensorType, rows: Rows, importance: Rows | None = None) -> Bytes:
    out = np.full((len(rows), scheme(type).row_bytes(rows.shape[1])), 0xA5, np.uint8)
    scheme(type).encode(rows, out, importance)
    return out


def assert_same_superblocks(type: TensorType, rows: Rows, importance: Rows | None = None) -> None:
    found, expected = encode(type, rows, importance), ggml.quantize(type, rows, importance)
    differ = (found != expected).reshape(-1, scheme(type).block.itemsize).any(axis=1)
    assert not differ.any(), f"{differ.sum()} superblocks differ, first {np.flatnonzero(differ)[0]}"


@each_kquant
@pytest.mark.parametrize("case", LARGE_CASES)
def test_large_sets_encode_as_ggml(type: TensorType, case: str) -> None:
    assert_same_superblocks(type, large_rows(case))


@each_weighted_kquant
@pytest.mark.parametrize("case", LARGE_CASES)
def test_large_sets_encode_with_importance_as_ggml(type: TensorType, case: str) -> None:
    """Every kind of importance with a part of the rows."""
    rows = large_rows(case)
    for i, kind in enumerate(IMPORTANCE):
        part = np.ascontiguousarray(rows[i :: len(IMPORTANCE)])
        assert_same_superblocks(type, part, importance_of(kind, COLUMNS))


@each_kquant
@pytest.mark.parametrize("case", CASES)
def test_encodes_as_the_oracle(type: TensorType, case: str) -> None:
    rows = np.ascontiguousarray(rows_of(case)[:, 256:512])
    for row in rows[:: max(1, len(rows) // 3)]:
        with np.errstate(all="ignore"):
            expected = ORACLES[type](row)
        assert encode(type, row[None]).tobytes() == expected


@each_kquant
@pytest.mark.parametrize("n_rows", [1, 2, 3, 7])
@pytest.mark.parametrize("n_superblocks", [1, 2, 3, 4, 5])
def test_any_number_of_superblocks(type: TensorType, n_rows: int, n_superblocks: int) -> None:
    """Groups of lanes run on over the ends of rows, and the last group may be part empty."""
    rng = np.random.default_rng(n_superblocks)
    rows = rng.standard_normal((n_rows, 256 * n_superblocks), np.float32)
    np.testing.assert_array_equal(encode(type, rows), ggml.quantize(type, rows))
    importance = rng.random(256 * n_superblocks, np.float32)
    np.testing.assert_array_equal(encode(type, rows, importance), ggml.quantize(type, rows, importance))


@each_kquant
def test_threads_do_not_disturb_each_other(type: TensorType) -> None:
    rows = large_rows("zeros among others")
    whole = encode(type, rows)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: encode(type, rows[i : i + 8]), range(0, len(rows), 8)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@each_kquant
def test_decodes_any_bytes_as_gguf(type: TensorType, rng: np.random.Generator) -> None:
    """All bit patterns of scales and codes, with float16 infinities, NaN and denormals among the d."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    packed = rng.integers(0, 256, (512, scheme(type).row_bytes(COLUMNS)), np.uint8)
    found = np.empty((512, COLUMNS), np.float32)
    scheme(type).decode(packed, found)
    with np.errstate(all="ignore"):
        expected = dequantize(packed, GGMLQuantizationType(int(type)))
        for decoded in (expected, scheme(type).decode_oracle(packed)):
            np.testing.assert_array_equal(found, decoded)
