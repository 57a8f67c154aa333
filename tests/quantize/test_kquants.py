"""What only the K-quants have: searches in lanes, groups of superblocks, codes that survive a scale of zero."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from tests import ggml
from tests.quantize import kquant_oracle as oracle
from tests.quantize.cases import CASES, IMPORTANCE, importance_of, rows_of

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]

KQUANTS = (TensorType.Q2_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K)
WEIGHTED = [type for type in KQUANTS if scheme(type).uses_importance]
each_kquant = pytest.mark.parametrize("type", KQUANTS, ids=lambda type: type.name)
each_weighted_kquant = pytest.mark.parametrize("type", WEIGHTED, ids=lambda type: type.name)

ORACLES: dict[TensorType, Callable[[Rows], bytes]] = {
    TensorType.Q2_K: oracle.encode_q2_k,
    TensorType.Q4_K: oracle.encode_q4_k,
    TensorType.Q5_K: oracle.encode_q5_k,
    TensorType.Q6_K: oracle.encode_q6_k,
}
COLUMNS = 1280  # five superblocks: the last group of lanes is never whole
N = 256 * COLUMNS
LARGEST = 3.4028235e38


def _scaled(rng: np.random.Generator, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
    return rng.standard_normal(N) * 10.0 ** np.resize(exponents, N)


def _outliers(rng: np.random.Generator, size: float) -> NDArray[np.float64]:
    weights = 0.01 * rng.standard_normal(N)
    weights[::256] = size * rng.standard_normal(N // 256)
    return weights


def _some_sub_blocks(rng: np.random.Generator, other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ordinary sub-blocks with others scattered among them: neighbouring lanes take different paths."""
    return np.where(np.repeat(rng.random(N // 32) < 0.3, 32), other, rng.standard_normal(N))


LARGE_CASES: dict[str, Callable[[np.random.Generator], Any]] = {
    "normal": lambda rng: 0.02 * rng.standard_normal(N),
    "normal, another seed": lambda rng: np.random.default_rng(1234).standard_normal(N),
    "cauchy": lambda rng: rng.standard_cauchy(N),
    "student t": lambda rng: 1e-3 * rng.standard_t(2, N),
    "all positive": lambda rng: rng.random(N),
    "all negative": lambda rng: -rng.random(N),
    "far from zero": lambda rng: np.where(np.repeat(rng.random(N // 256) < 0.5, 256), 100, -100) + rng.random(N),
    "zeros": lambda rng: np.zeros(N),
    "constant superblocks": lambda rng: np.repeat(rng.standard_normal(N // 256), 256),
    "constant sub-blocks": lambda rng: np.repeat(rng.standard_normal(N // 32), 32),
    "nearly constant": lambda rng: np.repeat(rng.standard_normal(N // 32), 32) * (1 + 1e-7 * rng.integers(-3, 4, N)),
    "tiny": lambda rng: 1e-30 * rng.standard_normal(N),
    "around the limit for zeros": lambda rng: _scaled(rng, np.linspace(-16, -14, 16 * 40).repeat(16)),
    "float16 denormal scales": lambda rng: _scaled(rng, np.linspace(-10, -3, 40).repeat(256)),
    "denormal": lambda rng: 1e-40 * rng.standard_normal(N),
    "a few denormal units": lambda rng: 2.0**-149 * rng.integers(-5, 6, N),
    "squares overflow": lambda rng: _scaled(rng, np.linspace(18, 21, 40).repeat(32)),
    "huge": lambda rng: np.clip(1e38 * rng.standard_normal(N), -LARGEST, LARGEST),
    "largest": lambda rng: LARGEST * rng.choice([-1, 1], N),
    "outliers": lambda rng: _outliers(rng, 1e3),
    "huge outliers": lambda rng: _outliers(rng, 1e30),
    "sparse": lambda rng: rng.standard_normal(N) * (rng.random(N) < 0.03),
    "whole numbers": lambda rng: rng.integers(-8, 8, N),
    "three values": lambda rng: rng.integers(-1, 2, N),
    "sub-blocks of any size": lambda rng: _scaled(rng, rng.uniform(-8, 8, N // 32).repeat(32)),
    "zeros among others": lambda rng: _some_sub_blocks(rng, np.zeros(N)),
    "negative constants among others": lambda rng: _some_sub_blocks(rng, np.full(N, -0.75)),
    "denormals among others": lambda rng: _some_sub_blocks(rng, 1e-41 * rng.standard_normal(N)),
    "huge among others": lambda rng: _some_sub_blocks(rng, 1e37 * rng.standard_normal(N)),
    "any bits": lambda rng: np.nan_to_num(
        rng.integers(0, 1 << 32, N, np.uint32).view(np.float32), nan=0.0, posinf=1.0, neginf=-1.0
    ),
}


def large_rows(case: str) -> Rows:
    """256 rows of a case; the same on every run."""
    weights = LARGE_CASES[case](np.random.default_rng(sorted(LARGE_CASES).index(case)))
    rows = np.ascontiguousarray(weights, np.float32).reshape(-1, COLUMNS)
    assert np.isfinite(rows).all()
    return rows


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


def test_q6_k_sub_blocks_of_zeros_beside_others() -> None:
    """Zeros have code 0, not 32; a sub-block that is only too small for a scale keeps its search's codes."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((32, 256), np.float32)
    rows[:, 16:32] = 0
    rows[:, 32:48] *= np.float32(1e-5)
    packed = encode(TensorType.Q6_K, rows)
    blocks = packed.view(scheme(TensorType.Q6_K).block)[:, 0]
    assert (blocks["scales"][:, 1:3] == 0).all()
    zeros = blocks["ql"][:, 16:32] & 15 | (blocks["qh"][:, 16:32] & 3) << 4
    small = blocks["ql"][:, 32:48] & 15 | (blocks["qh"][:, 0:16] >> 2 & 3) << 4
    assert (zeros == 0).all()
    assert (np.abs(small.astype(int) - 32).max(axis=-1) >= 31).all()
    np.testing.assert_array_equal(packed, ggml.quantize(TensorType.Q6_K, rows))


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
