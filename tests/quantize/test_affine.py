"""The search for a scale and a minimum, the numbers of scales, and codes that survive a scale of zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, kernel
from llmkit.kernels.kquant_affine import (
    AFFINE_SEARCH,
    IMPORTANCE,
    MAGNITUDE,
    MASS,
    MINUS_MINIMUM,
    PARTS,
    SCALE,
    SCRATCH,
    SPREAD,
    AffineSearch,
    search,
    search_one,
)
from llmkit.kernels.kquant_scales import ScaleNumbers, find_scale_numbers
from llmkit.kernels.lanes import LANES
from llmkit.quantize.schemes import scheme
from llmkit.quantize.schemes.affine import TILE, weighted_search
from llmkit.quantize.schemes.flat import fifth_bits, nibbles
from llmkit.types import TensorType
from tests import ggml
from tests.quantize import kquant_oracle as oracle
from tests.quantize.cases import CASES, importance_of, rows_of
from tests.quantize.cases import IMPORTANCE as IMPORTANCE_KINDS
from tests.quantize.large_cases import LARGE_CASES, large_rows

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BLOCKS = (TensorType.Q4_1, TensorType.Q5_1)
each_of_blocks = pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
SIX_BITS = (TensorType.Q4_K, TensorType.Q5_K)
each_with_six_bits = pytest.mark.parametrize("type", SIX_BITS, ids=lambda type: type.name)


def encode(type: TensorType, rows: Rows, importance: Rows | None = None) -> Bytes:
    out = np.full((len(rows), scheme(type).row_bytes(rows.shape[1])), 0xA5, np.uint8)
    scheme(type).encode(rows, out, importance)
    return out


ORACLES: dict[TensorType, Callable[[Rows, Rows], bytes]] = {
    TensorType.Q2_K: oracle.encode_q2_k,
    TensorType.Q4_K: oracle.encode_q4_k,
    TensorType.Q5_K: oracle.encode_q5_k,
}


@pytest.mark.parametrize("type", ORACLES, ids=lambda type: type.name)
@pytest.mark.parametrize("case", CASES)
def test_encodes_with_importance_as_the_oracle(type: TensorType, case: str) -> None:
    rows = np.ascontiguousarray(rows_of(case)[:, 256:512])
    for row, kind in zip(rows[:: max(1, len(rows) // 3)], ("ordinary", "some zeros", "any exponent"), strict=False):
        importance = importance_of(kind, 256)
        with np.errstate(all="ignore"):
            expected = ORACLES[type](row, importance)
        assert encode(type, row[None], importance).tobytes() == expected


def _affine_numbers(type: TensorType, packed: Bytes) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.uint8]]:
    """Blocks, their 6-bit scales [..., 8] and codes [..., 8, 32]."""
    blocks = packed.view(scheme(type).block)
    raw = blocks["scales"]
    scales = np.concatenate([raw[..., :4] & 63, raw[..., 8:] & 15 | raw[..., :4] >> 6 << 4], axis=-1)
    qs = blocks["qs"].reshape(*blocks.shape, 4, 32)
    codes = np.stack([qs & 15, qs >> 4], axis=-2).reshape(*blocks.shape, 8, 32)
    if type == TensorType.Q5_K:
        bits = blocks["qh"][..., None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1
        codes = codes | bits << 4
    return blocks, scales, codes


@each_with_six_bits
def test_codes_of_the_search_stay_where_the_stored_scale_is_zero(type: TensorType) -> None:
    """The branch `if (!d) continue` of the C code: the case must occur, or the test says nothing."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 256), np.float32)
    rows[:, 32:] *= np.float32(1e-4)
    packed = encode(type, rows)
    _, scales, codes = _affine_numbers(type, packed)
    assert (scales[..., 0] == 63).all()
    assert (scales[..., 1:] == 0).all()
    assert (codes[..., 1:, :].max(axis=-1) >= (14 if type == TensorType.Q4_K else 30)).all()
    np.testing.assert_array_equal(packed, ggml.quantize(type, rows))


@each_with_six_bits
def test_scales_beyond_float16(type: TensorType) -> None:
    sizes = np.array([[1e-9], [1e-4], [1e6], [1e9]])
    rows = (sizes * np.random.default_rng(0).standard_normal((4, 256))).astype(np.float32)
    packed = encode(type, rows)
    blocks, _, _ = _affine_numbers(type, packed)
    d = blocks["d"][:, 0]
    assert d[0] == 0
    assert 0 < d[1] < 6e-5  # a denormal
    assert np.isfinite(d[2])
    assert np.isinf(d[3])
    np.testing.assert_array_equal(packed, ggml.quantize(type, rows))


@kernel(FLOATS_IN, FLOATS_IN, AFFINE_SEARCH, FLOATS_OUT)
def _search_alone(columns: Any, counts: Any, form: AffineSearch, found: Any) -> None:
    """The lone search on sixteen lanes; columns and counts as in the scratch of the search."""
    scratch = np.empty(SCRATCH, np.float32)
    for i in range(form.size * LANES):
        scratch[i] = columns[i]
        scratch[SCRATCH // 3 + i] = counts[i]
    for lane in range(LANES):
        one = search_one(scratch, lane, form)
        for part in range(4):
            found[LANES * part + lane] = one[part]


def counts_of(rows: Rows, form: AffineSearch, importance: Rows, mean_square: np.float32) -> Rows:
    """What weights count, float32 [16, size]."""
    if form.errors == MAGNITUDE:
        return np.abs(rows)
    if form.errors == IMPORTANCE:
        return importance * np.sqrt(mean_square + rows * rows)
    return np.array([oracle.spread_counts(row) for row in rows])


FORMS = [
    AffineSearch(32, 15, np.float32(-1), np.float32(0.1), 20, SPREAD),
    AffineSearch(32, 31, np.float32(-0.5), np.float32(0.1), 15, SPREAD),
    AffineSearch(16, 3, np.float32(-0.5), np.float32(0.1), 15, MAGNITUDE),
    weighted_search(16, 3),
    weighted_search(32, 31),
]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, -1.0000001, 2.0**-149, -(2.0**-130), 65504.0, -3e38])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.size} weights, {form.highest}, {form.errors}")
@given(data=st.data())
def test_lanes_find_what_a_lone_search_finds(form: AffineSearch, data: st.DataObject) -> None:
    """Bit for bit, inverse scale and starting minimum included, which bytes seldom show."""
    shape = (LANES, form.size)
    rows = data.draw(
        st.one_of(hnp.arrays(np.float32, shape, elements=e, fill=f) for e, f in ((finite, few), (few, few)))
    )
    importance = data.draw(hnp.arrays(np.float32, form.size, elements=st.floats(0, 4, width=32)))
    lanes = np.empty(PARTS * LANES, np.float32)
    mean_square = np.float32(0.5)
    search(rows.reshape(-1), 0, rows.size, form, importance, np.full(1, mean_square), rows.size, lanes)
    alone = np.empty(4 * LANES, np.float32)
    with np.errstate(all="ignore"):
        counts = counts_of(rows, form, importance, mean_square)
    _search_alone(np.ascontiguousarray(rows.T).reshape(-1), np.ascontiguousarray(counts.T).reshape(-1), form, alone)
    np.testing.assert_array_equal(lanes[: 4 * LANES].view(np.uint32), alone.view(np.uint32))


FORMS_OF_NUMBERS = [
    ScaleNumbers(8, 63, 63, False),
    ScaleNumbers(16, 15, 255, False),
    ScaleNumbers(8, 63, 63, True),
    ScaleNumbers(8, 63, 255, True),
    ScaleNumbers(16, 15, 255, True),
]
# Scales are negative where rounding spoils a fit; their numbers wrap.
scales = st.floats(-0.25, 1, width=32) | st.sampled_from([0.0, -0.0, 1e-15, 2.0**-149, -1e-6, -1e30, 3e38])
masses = st.floats(0, 4, width=32) | st.sampled_from([0.0, 1.0, 1e-30, 1e30])


@pytest.mark.parametrize("form", FORMS_OF_NUMBERS, ids=str)
@given(data=st.data())
def test_numbers_of_scales_as_the_oracle(form: ScaleNumbers, data: st.DataObject) -> None:
    """Nineteen superblocks: the second group of lanes is part empty."""
    shape = (19, form.sub_blocks)
    values = [data.draw(hnp.arrays(np.float32, shape, elements=scales)) for _ in range(2)]
    counted = data.draw(hnp.arrays(np.float32, shape, elements=masses))
    found = np.zeros((PARTS, 32 * form.sub_blocks), np.float32)
    for part, rows in ((SCALE, values[0]), (MINUS_MINIMUM, values[1]), (MASS, counted)):
        found[part, : rows.size] = rows.reshape(-1)
    factors, numbers = np.empty((2, 32), np.float32), np.zeros((2, 32 * form.sub_blocks), np.uint8)
    find_scale_numbers(found.reshape(-1), len(counted), form, factors.reshape(-1), numbers.reshape(-1))
    for rows, found_factors, found_numbers in zip(values, factors, numbers, strict=True):
        for k, row in enumerate(rows):
            with np.errstate(all="ignore"):
                if form.fitted:
                    factor, expected = oracle.numbers_by_fit(list(row), list(counted[k]), form.highest)
                else:
                    factor, expected = oracle.numbers_by_largest(list(row), form.highest)
            np.testing.assert_array_equal(found_factors[k], factor)
            mine = found_numbers[form.sub_blocks * k : form.sub_blocks * (k + 1)]
            np.testing.assert_array_equal(mine, np.minimum(expected, form.largest_byte))


@pytest.mark.parametrize("type", ORACLES, ids=lambda type: type.name)
@pytest.mark.parametrize("columns", [256, 768, 5 * 256])
def test_tiles_may_end_inside_a_row(type: TensorType, columns: int) -> None:
    rng = np.random.default_rng(columns)
    rows = rng.standard_normal((2 * TILE // columns + 3, columns), np.float32)
    importance = rng.random(columns, np.float32)
    np.testing.assert_array_equal(encode(type, rows), ggml.quantize(type, rows))
    np.testing.assert_array_equal(encode(type, rows, importance), ggml.quantize(type, rows, importance))


@each_of_blocks
@pytest.mark.parametrize("case", CASES)
def test_blocks_encode_with_importance_as_the_oracle(type: TensorType, case: str) -> None:
    row = np.ascontiguousarray(rows_of(case)[-1:, :256])
    importance = importance_of("some zeros", 256)
    blocks = encode(type, row, importance).view(scheme(type).block)[0]
    with np.errstate(all="ignore"):
        expected = oracle.encode_blocks(row[0], importance, 15 if type == TensorType.Q4_1 else 31)
    codes = nibbles(blocks["codes"])
    if type == TensorType.Q5_1:
        codes = codes + fifth_bits(blocks["high_bits"])
    for block, found, (scale, minimum, expected_codes) in zip(blocks, codes, expected, strict=True):
        np.testing.assert_array_equal(block["scale"], scale)
        np.testing.assert_array_equal(block["minimum"], minimum)
        np.testing.assert_array_equal(found, expected_codes)


@each_of_blocks
@pytest.mark.parametrize("case", LARGE_CASES)
def test_large_sets_of_blocks_encode_with_importance_as_ggml(type: TensorType, case: str) -> None:
    rows = large_rows(case)
    for i, kind in enumerate(IMPORTANCE_KINDS):
        part = np.ascontiguousarray(rows[i :: len(IMPORTANCE_KINDS)])
        importance = importance_of(kind, part.shape[1])
        np.testing.assert_array_equal(encode(type, part, importance), ggml.quantize(type, part, importance), kind)


@each_of_blocks
@pytest.mark.parametrize("columns", [32, 96, 32 * 39, TILE + 96])
def test_blocks_of_any_number_of_columns(type: TensorType, columns: int) -> None:
    """Groups of sixteen blocks run on over the ends of rows, tiles end inside them."""
    rng = np.random.default_rng(columns)
    rows = rng.standard_normal((TILE // columns + 3, columns), np.float32)
    importance = rng.random(columns, np.float32)
    np.testing.assert_array_equal(encode(type, rows, importance), ggml.quantize(type, rows, importance))
