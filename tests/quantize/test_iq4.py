"""What only IQ4_NL and IQ4_XS have: uneven levels, and a search for the scale in groups of sixteen blocks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.kernels.intlanes import store_i32
from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, INTS_OUT, kernel
from llmkit.kernels.lanes import LANES, load, store
from llmkit.kernels.levels import LEVELS, MIDPOINTS, nearest_level_codes, nearest_levels
from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from tests import ggml
from tests.quantize.cases import CASES, IMPORTANCE, importance_of, rows_of
from tests.quantize.kquant_oracle import nearest
from tests.quantize.test_kquants import LARGE_CASES, large_rows

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]
f32 = np.float32

each_type = pytest.mark.parametrize("type", [TensorType.IQ4_NL, TensorType.IQ4_XS], ids=lambda type: type.name)


def encode(type: TensorType, rows: Rows, importance: Rows | None = None) -> Bytes:
    out = np.full((len(rows), scheme(type).row_bytes(rows.shape[1])), 0xA5, np.uint8)
    scheme(type).encode(rows, out, importance)
    return out


def level_code(value: np.float32) -> int:
    """The nearest level by bisection and a comparison of distances, as C does it."""
    if value <= LEVELS[0]:
        return 0
    if value >= LEVELS[15]:
        return 15
    low, high = 0, 15
    while high - low > 1:
        middle = (low + high) // 2
        if value < LEVELS[middle]:
            high = middle
        else:
            low = middle
    return high - 1 if value - LEVELS[high - 1] < LEVELS[high] - value else high


def searched_scale(x: Rows, importance: Rows | None, sigma2: np.float32) -> np.float32:
    """The scale of a block of 32, one float32 operation after the other."""
    extreme = f32(0)
    for v in x:
        if abs(v) > abs(extreme):
            extreme = v
    if abs(extreme) < f32(1e-15):
        return f32(0)
    error_weights = x * x if importance is None else importance * np.sqrt(sigma2 + x * x)

    def sums(inverse: np.float32) -> tuple[np.float32, np.float32]:
        sum_qx = sum_q2 = f32(0)
        for v, w in zip(x, error_weights, strict=True):
            level = LEVELS[level_code(inverse * v)]
            sum_qx = sum_qx + w * level * v
            sum_q2 = sum_q2 + w * level * level
        return sum_qx, sum_q2

    sum_qx, sum_q2 = sums(f32(1) / (-extreme / f32(-127)))
    scale = sum_qx / sum_q2 if sum_q2 > 0 else f32(0)
    best = scale * sum_qx
    for step in range(-7, 8):
        sum_qx, sum_q2 = sums(f32(step - 127) / extreme)
        if sum_q2 > 0 and sum_qx * sum_qx > best * sum_q2:
            scale = sum_qx / sum_q2
            best = scale * sum_qx
    return scale


def level_codes(x: Rows, scale: np.float32) -> Bytes:
    inverse = f32(1) / scale if scale != 0 else f32(0)
    codes = np.array([level_code(inverse * v) for v in x], np.uint8)
    return codes[:16] | codes[16:] << 4


def sigma2_of(x: Rows) -> np.float32:
    energy = f32(0)
    for v in x:
        energy = energy + v * v
    return energy * f32(2 / len(x))


def encode_iq4_nl(x: Rows, importance: Rows | None) -> bytes:
    packed = b""
    for at in range(0, 256, 32):
        block, part = x[at : at + 32], None if importance is None else importance[at : at + 32]
        scale = searched_scale(block, part, sigma2_of(block))
        packed += np.float16(scale).tobytes() + level_codes(block, scale).tobytes()
    return packed


def encode_iq4_xs(x: Rows, importance: Rows | None) -> bytes:
    sigma2 = sigma2_of(x)
    blocks = x.reshape(8, 32)
    parts = [None] * 8 if importance is None else list(importance.reshape(8, 32))
    found = [searched_scale(block, part, sigma2) for block, part in zip(blocks, parts, strict=True)]
    extreme = f32(0)
    for scale in found:
        if abs(scale) > abs(extreme):
            extreme = scale
    d = -extreme / f32(32)
    inverse = f32(1) / d if d != 0 else f32(0)
    stored, codes = [], b""
    for block, scale in zip(blocks, found, strict=True):
        number = max(-32, min(31, nearest(inverse * scale)))
        codes += level_codes(block, d * f32(number)).tobytes()
        stored.append(number + 32)
    high = sum((number >> 4) << 2 * j for j, number in enumerate(stored))
    low = bytes(stored[j] & 15 | (stored[j + 1] & 15) << 4 for j in range(0, 8, 2))
    return np.float16(d).tobytes() + np.uint16(high).tobytes() + low + codes


ORACLES = {TensorType.IQ4_NL: encode_iq4_nl, TensorType.IQ4_XS: encode_iq4_xs}


@each_type
@pytest.mark.parametrize("case", CASES)
def test_encodes_as_the_oracle(type: TensorType, case: str) -> None:
    rows = np.ascontiguousarray(rows_of(case)[:, 256:512])
    for row, kind in zip(rows[:: max(1, len(rows) // 3)], (None, "heavy-tailed", "some zeros"), strict=False):
        importance = importance_of(kind, 256) if kind else None
        with np.errstate(all="ignore"):
            expected = ORACLES[type](row, importance)
        assert encode(type, row[None], importance).tobytes() == expected


@each_type
@pytest.mark.parametrize("case", LARGE_CASES)
def test_large_sets_encode_as_ggml(type: TensorType, case: str) -> None:
    rows = large_rows(case)[:128]
    kind = sorted(IMPORTANCE)[sorted(LARGE_CASES).index(case) % len(IMPORTANCE)]
    for importance in (None, importance_of(kind, rows.shape[1])):
        found, expected = encode(type, rows, importance), ggml.quantize(type, rows, importance)
        differ = (found != expected).reshape(-1, scheme(type).block.itemsize).any(axis=1)
        assert not differ.any(), f"{differ.sum()} blocks differ, first {np.flatnonzero(differ)[0]}, {kind}"


@each_type
@pytest.mark.parametrize("n_rows", [1, 2, 3, 7])
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5, 16, 17])
def test_any_number_of_blocks(type: TensorType, n_rows: int, n_blocks: int) -> None:
    """Groups of lanes run on over the ends of rows, and the last group may be part empty."""
    size = 32 if type == TensorType.IQ4_NL else 256
    rng = np.random.default_rng(n_blocks)
    rows = rng.standard_normal((n_rows, size * n_blocks), np.float32)
    importance = rng.random(size * n_blocks, np.float32)
    np.testing.assert_array_equal(encode(type, rows), ggml.quantize(type, rows))
    np.testing.assert_array_equal(encode(type, rows, importance), ggml.quantize(type, rows, importance))


@each_type
def test_threads_do_not_disturb_each_other(type: TensorType) -> None:
    rows = large_rows("zeros among others")
    importance = importance_of("ordinary", rows.shape[1])
    whole = encode(type, rows, importance)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: encode(type, rows[i : i + 8], importance), range(0, len(rows), 8)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@kernel(FLOATS_IN, INTS_OUT, FLOATS_OUT)
def _nearest(values: Any, codes: Any, levels: Any) -> None:
    for i in range(0, values.size, LANES):
        store_i32(codes, i, nearest_level_codes(load(values, i)))
        store(levels, i, nearest_levels(load(values, i)))


def found_levels(values: Rows) -> tuple[NDArray[np.int32], Rows]:
    codes, levels = np.empty(values.size, np.int32), np.empty_like(values)
    _nearest(values, codes, levels)
    return codes, levels


def floats_around(values: Rows, count: int) -> Rows:
    """The floats up to `count` places from each value that is not zero."""
    words = values.view(np.int32)[:, None] + np.arange(-count, count, dtype=np.int32)
    return words.reshape(-1).view(np.float32)


def test_levels_are_found_around_all_limits() -> None:
    """At the levels, at the midpoints, where buckets meet, at the ends of what the search meets, and for zeros."""
    edges = np.array([18 * k + 9 for k in range(-8, 8)], np.float32)
    values = floats_around(np.concatenate([LEVELS, MIDPOINTS, edges[1:-1]]), 64)
    values = np.concatenate([values, np.array([0.0, -0.0, 1e-45, -1e-45, 134.001, -134.001] + 10 * [1.0], np.float32)])
    codes, levels = found_levels(values)
    np.testing.assert_array_equal(codes, [level_code(v) for v in values])
    np.testing.assert_array_equal(levels, LEVELS[codes])


def test_levels_are_found_for_any_value(rng: np.random.Generator) -> None:
    values = rng.integers(0, 1 << 32, 1 << 14, np.uint32).view(np.float32)
    codes, _ = found_levels(values)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(codes, [level_code(v) for v in values])
    within = rng.uniform(-134, 134, 1 << 22).astype(np.float32)
    codes, levels = found_levels(within)
    np.testing.assert_array_equal(codes, np.searchsorted(MIDPOINTS, within, side="right"))
    np.testing.assert_array_equal(levels, LEVELS[codes])


def test_a_superblock_of_zeros_has_scale_minus_zero() -> None:
    """ggml writes the negated largest scale, so the sign bit of a scale of 0 is set; all codes are of level 1."""
    packed = encode(TensorType.IQ4_XS, np.zeros((1, 256), np.float32))
    blocks = packed.view(scheme(TensorType.IQ4_XS).block)
    assert blocks["d"].view(np.uint16) == 0x8000
    assert (blocks["codes"] == 0x88).all()
    np.testing.assert_array_equal(packed, ggml.quantize(TensorType.IQ4_XS, np.zeros((1, 256), np.float32)))
