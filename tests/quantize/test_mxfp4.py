"""What only MXFP4 has: an exponent that comes from a rounded logarithm, and the levels of four-bit floats."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from tests import ggml
from tests.quantize.cases import CASES, rows_of
from tests.quantize.test_kquants import LARGE_CASES, large_rows

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]

MXFP4 = TensorType.MXFP4
LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def encode(rows: Rows) -> Bytes:
    out = np.full((len(rows), scheme(MXFP4).row_bytes(rows.shape[1])), 0xA5, np.uint8)
    scheme(MXFP4).encode(rows, out)
    return out


def check_as_ggml(rows: Rows) -> None:
    differ = (encode(rows) != ggml.quantize(MXFP4, rows)).any(axis=1)
    assert not differ.any(), f"{differ.sum()} rows differ, first {rows[np.flatnonzero(differ)[0]]}"


def encode_by_definition(x: Rows) -> bytes:
    """Any block of 32 whose exponent is in range: the first of the levels that are nearest in float32."""
    largest = np.abs(x).max()
    exponent = int(np.floor(np.log2(largest)) - 2 + 127) if largest > 0 else 0
    scale = np.ldexp(np.float32(1), exponent - 128)
    codes = np.abs(scale * LEVELS - x[:, None]).argmin(axis=1).astype(np.uint8)
    return bytes([exponent]) + (codes[:16] | codes[16:] << 4).tobytes()


@pytest.mark.parametrize("case", [case for case in CASES if case != "denormal"])
def test_encodes_by_definition(case: str) -> None:
    blocks = rows_of(case).reshape(-1, 32)
    blocks = blocks[(blocks == 0).all(axis=1) | (np.abs(blocks).max(axis=1) > 1e-37)][::7]
    with np.errstate(over="ignore"):
        expected = [encode_by_definition(block) for block in blocks]
    assert [packed.tobytes() for packed in encode(np.ascontiguousarray(blocks))] == expected


@pytest.mark.parametrize("case", LARGE_CASES)
def test_large_sets_encode_as_ggml(case: str) -> None:
    check_as_ggml(large_rows(case))


@pytest.mark.parametrize("power", range(-149, 129))
def test_largest_weights_around_powers_of_two(power: int) -> None:
    """log2f rounds some floats below a power up to it; below 2**-125 exponents wrap, as they do in ggml."""
    edge = np.float32(np.inf) if power == 128 else np.ldexp(np.float32(1), power)
    words = edge.view(np.int32) + np.arange(-70, 70)
    largest = words[(words > 0) & (words <= np.float32(np.inf).view(np.int32))].astype(np.int32).view(np.float32)
    rows = largest[:, None] * np.linspace(-0.96875, 1, 32, dtype=np.float32)
    check_as_ggml(rows)


def test_some_floats_below_a_power_take_its_exponent() -> None:
    """The case that the test above is for does occur: 2**64 - 22 or fewer places has the exponent of 2**64."""
    exponents = {}
    for places in (0, 22, 23):
        word = np.float32(2.0**64).view(np.int32) - np.int32(places)
        exponents[places] = int(encode(np.full((1, 32), word, np.int32).view(np.float32))[0, 0])
    assert exponents == {0: 64 + 125, 22: 64 + 125, 23: 63 + 125}


@pytest.mark.parametrize("power", [-127, -120, -30, 0, 30, 120, 125])
def test_ties_between_levels(power: int) -> None:
    """Multiples of a quarter of the scale and their neighbours: at a midpoint the smaller magnitude wins."""
    quarters = np.arange(-63, 64, dtype=np.float32) / np.float32(4)
    values = np.concatenate([quarters, np.nextafter(quarters, np.float32(99)), np.nextafter(quarters, np.float32(-99))])
    rows = np.full((len(values), 32), 15.75, np.float32)
    rows[:, 5] = rows[:, 21] = values
    check_as_ggml(np.ldexp(rows, power - 3))


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, np.finfo(np.float32).max])
def test_any_weight_beside_an_extreme_one(special: float) -> None:
    """Beside infinity ggml takes the smallest scale, with which distances to large weights are no longer exact."""
    rng = np.random.default_rng(0)
    rows = np.ldexp(rng.uniform(-1, 1, (4096, 32)), rng.integers(-149, 129, (4096, 1))).astype(np.float32)
    rows[::2, 3] = special
    check_as_ggml(rows)


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 33])
def test_any_number_of_blocks(n_blocks: int) -> None:
    check_as_ggml(np.random.default_rng(n_blocks).standard_normal((3, 32 * n_blocks), np.float32))


def test_decodes_every_exponent_and_code() -> None:
    packed = np.zeros((256, 17), np.uint8)
    packed[:, 0] = np.arange(256)
    packed[:, 1:] = np.arange(16) | np.arange(15, -1, -1) << 4
    decoded = np.empty((256, 32), np.float32)
    scheme(MXFP4).decode(packed, decoded)
    with np.errstate(over="ignore"):
        expected = np.ldexp(np.tile(LEVELS, 2), np.arange(-128, 128)[:, None])
    expected[:, 16:] = expected[:, 15::-1]
    np.testing.assert_array_equal(decoded.view(np.uint32), expected.astype(np.float32).view(np.uint32))
