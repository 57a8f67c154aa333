"""The searches for a scale without a minimum, and codes that survive a scale of zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llmkit.kernels.kquant_descent import descend
from llmkit.kernels.kquant_symmetric import search
from llmkit.quantize.schemes import scheme
from llmkit.quantize.schemes.symmetric import NONE, TILE, tiles
from llmkit.types import TensorType
from tests import ggml
from tests.quantize import symmetric_oracle as oracle
from tests.quantize.cases import CASES, IMPORTANCE, importance_of, rows_of
from tests.quantize.large_cases import LARGE_CASES, large_rows

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]

ORACLES: dict[TensorType, Callable[[Rows, Rows], bytes]] = {
    TensorType.Q4_0: oracle.encode_q4_0,
    TensorType.Q5_0: oracle.encode_q5_0,
    TensorType.Q3_K: oracle.encode_q3_k,
    TensorType.Q6_K: oracle.encode_q6_k,
}
BLOCKS = (TensorType.Q4_0, TensorType.Q5_0)
SUPERBLOCKS = (TensorType.Q3_K, TensorType.Q6_K)
each_type = pytest.mark.parametrize("type", ORACLES, ids=lambda type: type.name)
each_of_blocks = pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
each_of_superblocks = pytest.mark.parametrize("type", SUPERBLOCKS, ids=lambda type: type.name)


def encode(type: TensorType, rows: Rows, importance: Rows | None = None) -> Bytes:
    out = np.full((len(rows), scheme(type).row_bytes(rows.shape[1])), 0xA5, np.uint8)
    scheme(type).encode(rows, out, importance)
    return out


def assert_as_ggml(type: TensorType, rows: Rows, importance: Rows | None = None) -> Bytes:
    found = encode(type, rows, importance)
    differ = (found != ggml.quantize(type, rows, importance)).any(axis=1)
    assert not differ.any(), f"{differ.sum()} rows differ, first {np.flatnonzero(differ)[0]}"
    return found


@each_type
@pytest.mark.parametrize("case", CASES)
def test_encodes_with_importance_as_the_oracle(type: TensorType, case: str) -> None:
    rows = np.ascontiguousarray(rows_of(case)[:, 256:512])
    for row, kind in zip(rows[:: max(1, len(rows) // 3)], ("ordinary", "some zeros", "any exponent"), strict=False):
        importance = importance_of(kind, 256)
        with np.errstate(all="ignore"):
            expected = ORACLES[type](row, importance)
        assert encode(type, row[None], importance).tobytes() == expected


@each_of_blocks
@pytest.mark.parametrize("case", LARGE_CASES)
def test_large_sets_encode_with_importance_as_ggml(type: TensorType, case: str) -> None:
    """Every kind of importance with a part of the rows."""
    rows = large_rows(case)
    for i, kind in enumerate(IMPORTANCE):
        part = np.ascontiguousarray(rows[i :: len(IMPORTANCE)])
        assert_as_ggml(type, part, importance_of(kind, rows.shape[1]))


@each_of_blocks
@pytest.mark.parametrize("n_rows", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 15, 16, 18, 33])
def test_any_number_of_blocks(type: TensorType, n_rows: int, n_blocks: int) -> None:
    """Groups of lanes run on over the ends of rows, each lane with its own importances and mean square."""
    rng = np.random.default_rng(n_blocks)
    sizes = 10.0 ** rng.uniform(-3, 3, (n_rows, 1))
    rows = (sizes * rng.standard_normal((n_rows, 32 * n_blocks))).astype(np.float32)
    assert_as_ggml(type, rows, rng.random(32 * n_blocks, np.float32))


@each_type
@pytest.mark.parametrize("columns", [768, 2304, TILE, TILE + 256])
def test_several_tiles(type: TensorType, columns: int) -> None:
    """Rows are searched a tile at a time; a row may be larger than a tile."""
    rng = np.random.default_rng(columns)
    n_rows = 2 * TILE // columns + 1
    rows = (rng.standard_normal((n_rows, columns)) * 10.0 ** rng.uniform(-2, 2, (n_rows, 1))).astype(np.float32)
    assert sum(1 for _ in tiles(rows.size, columns)) > 1
    assert_as_ggml(type, rows, rng.random(columns, np.float32))
    assert_as_ggml(type, rows)


def test_tiles_are_whole_rows_and_everything() -> None:
    for size, row in ((0, 256), (256, 256), (3 * TILE, 256), (7 * 576 * 100, 576), (5 * (TILE + 32), TILE + 32)):
        parts = list(tiles(size, row))
        assert [part.start for part in parts] + [size] == [0] + [part.stop for part in parts]
        assert all(part.start % row == 0 and part.start < part.stop for part in parts)


@each_of_superblocks
def test_codes_of_the_search_stay_where_the_stored_scale_is_zero(type: TensorType) -> None:
    """The branch `if (!d) continue` of the C code: the case must occur, or the test says nothing."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((32, 256), np.float32)
    rows[:, 16:32] = 0
    rows[:, 32:48] *= np.float32(1e-5)
    for importance in (None, importance_of("ordinary", 256)):
        blocks = assert_as_ggml(type, rows, importance).view(scheme(type).block)[:, 0]
        if type == TensorType.Q6_K:
            numbers = blocks["scales"][:, 1:3]
            zeros = blocks["ql"][:, 16:32] & 15 | (blocks["qh"][:, 16:32] & 3) << 4
            small = blocks["ql"][:, 32:48] & 15 | (blocks["qh"][:, 0:16] >> 2 & 3) << 4
            reach = 32
        else:
            numbers = (blocks["scales"][:, 1:3] & 15 | (blocks["scales"][:, 9:11] & 3) << 4).astype(int) - 32
            zeros = blocks["qs"][:, 16:32] & 3 | (blocks["hmask"][:, 16:32] & 1) << 2
            small = blocks["qs"][:, 0:16] >> 2 & 3 | (blocks["hmask"][:, 0:16] >> 1 & 1) << 2
            reach = 4
        assert (numbers == 0).all()
        # Zeros have code 0, which stands for -reach; of the others, the largest does.
        assert (zeros == 0).all()
        assert (np.abs(small.astype(int) - reach).max(axis=-1) >= reach - 1).all()


@each_of_superblocks
@pytest.mark.parametrize("importance", [None, "ordinary", "huge"])
def test_scales_beyond_float16_and_float32(type: TensorType, importance: str | None) -> None:
    """From scales that float16 takes for zeros to weights whose sums overflow, of which ggml makes zeros again."""
    sizes = np.logspace(-16, 38, 109)[:, None]
    rows = np.clip(sizes * np.random.default_rng(0).standard_normal((109, 256)), -3e38, 3e38).astype(np.float32)
    packed = assert_as_ggml(type, rows, None if importance is None else importance_of(importance, 256))
    d = packed.view(scheme(type).block)["d"][:, 0]
    assert d[0] == 0
    if importance != "huge":
        assert (np.isfinite(d) & (d != 0)).any()
        assert np.isinf(d).any()


@each_type
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_where_nothing_else_counts(type: TensorType, special: float) -> None:
    """The code of NaN is zero in ggml, which shows where the sum of counts * codes^2 is zero without it."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 256), np.float32)
    rows[:, ::16] = special
    importance = np.zeros(256, np.float32)
    importance[::16] = 1
    assert_as_ggml(type, rows, importance)
    assert_as_ggml(type, rows, 1 - importance)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1, 1, width=32)
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -7.5, 2.0**-149, 1e-15, -9e-16, 65504.0, 1e13, -3e38])
counts = st.one_of(st.floats(0, width=32, allow_infinity=False), st.sampled_from([0.0, 1.0, 2.0**-149, 1e30]))
groups = st.one_of([hnp.arrays(np.float32, 3 * 32, elements=e, fill=e) for e in (finite, ordinary, few)])


@pytest.mark.parametrize(("size", "reach"), [(16, 4), (16, 32), (32, 8), (32, 16)])
@given(x=groups, importance=hnp.arrays(np.float32, 3 * 32, elements=counts, fill=counts))
def test_searches_as_the_oracle(size: int, reach: int, x: Rows, importance: Rows) -> None:
    """Scales, sums of counts and codes, bit for bit; a NaN may be any NaN."""
    n_groups = x.size // size
    found, codes = np.empty(2 * n_groups, np.float32), np.empty(x.size, np.uint8)
    search(x, np.float32(reach), importance, NONE, found, codes)
    for g in range(n_groups):
        part = slice(g * size, (g + 1) * size)
        with np.errstate(all="ignore"):
            scale, expected = oracle.search(x[part], importance[part], reach)
            # A cumulated sum adds one value after the other.
            mass = np.cumsum(importance[part], dtype=np.float32)[-1]
        np.testing.assert_array_equal(found[[g, n_groups + g]], np.array([scale, mass], np.float32))
        assert codes[part].tolist() == expected


@given(x=hnp.arrays(np.float32, 256, elements=finite, fill=ordinary) | hnp.arrays(np.float32, 256, elements=few))
def test_descends_as_the_oracle(x: Rows) -> None:
    scales, codes = np.empty(16, np.float32), np.empty(256, np.uint8)
    descend(x, scales, codes)
    for j in range(16):
        with np.errstate(all="ignore"):
            found = oracle.descend(x[16 * j : 16 * j + 16])
        np.testing.assert_array_equal(scales[j], found.scale)
        assert codes[16 * j : 16 * j + 16].tolist() == found.codes


@pytest.mark.parametrize("n_superblocks", [1, 2, 7, 8, 9, 40])
def test_descents_end_after_any_number_of_passes(n_superblocks: int) -> None:
    """Lanes that are done early beside lanes that are cut off, and superblocks of zeros beside others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(256 * n_superblocks, np.float32)
    x[256:512] = 0
    scales, codes = np.empty(x.size // 16, np.float32), np.empty(x.size, np.uint8)
    descend(x, scales, codes)
    found = [oracle.descend(part) for part in x.reshape(-1, 16)]
    np.testing.assert_array_equal(scales, [f.scale for f in found])
    np.testing.assert_array_equal(codes.reshape(-1, 16), [f.codes for f in found])
    if n_superblocks == 40:
        assert {f.passes for f in found} == {0, 1, 2, 3, 4, 5}


def test_a_descent_is_cut_off_after_five_passes() -> None:
    """One in some 250,000 sub-blocks would change in a sixth."""
    x = np.zeros(256, np.float32)
    x[:16] = [4, -13, -16, 1, -2, -11, -4, 9, 12, 16, -2, 2, -17, 7, -15, -14]
    assert oracle.descend(x[:16], 6).codes != oracle.descend(x[:16]).codes
    scales, codes = np.empty(16, np.float32), np.empty(256, np.uint8)
    descend(x, scales, codes)
    assert codes[:16].tolist() == oracle.descend(x[:16]).codes
    assert_as_ggml(TensorType.Q3_K, x[None])
