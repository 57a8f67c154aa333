"""Every scheme against ggml, gguf-py's decoder, its own NumPy oracle and the golden vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llmkit.quantize.schemes import SCHEMES, Scheme, scheme
from llmkit.types import BLOCK_LAYOUTS, TensorType
from tests import ggml
from tests.quantize import golden
from tests.quantize.cases import CASES, COLUMNS, IMPORTANCE, importance_of, rows_of, smollm2_rows

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]

WRITTEN = [type for type in SCHEMES if scheme(type).encoder]
WEIGHTED = [type for type in SCHEMES if scheme(type).uses_importance]
each_type = pytest.mark.parametrize("type", list(SCHEMES), ids=lambda type: type.name)
each_written_type = pytest.mark.parametrize("type", WRITTEN, ids=lambda type: type.name)
each_weighted_type = pytest.mark.parametrize("type", WEIGHTED, ids=lambda type: type.name)
FLOATS = (TensorType.F32, TensorType.F16, TensorType.BF16)
# What gguf-py does not decode.
NOT_IN_GGUF = (TensorType.Q8_K, TensorType.Q1_0, TensorType.Q2_0)

# Root mean square error on normal weights, relative to that of the weights: (at least, at most). Published figures
# and measurements with ggml agree with these; an error below the range would mean that the test is broken.
RELATIVE_ERROR = {
    TensorType.F32: (0.0, 0.0),
    TensorType.F16: (1e-4, 3e-4),
    TensorType.BF16: (1e-3, 2e-3),
    TensorType.Q8_0: (0.004, 0.007),
    TensorType.Q4_0: (0.06, 0.11),
    TensorType.Q4_1: (0.05, 0.09),
    TensorType.Q5_0: (0.03, 0.055),
    TensorType.Q5_1: (0.025, 0.045),
    TensorType.Q2_K: (0.24, 0.36),
    TensorType.Q3_K: (0.12, 0.18),
    TensorType.Q4_K: (0.05, 0.08),
    TensorType.Q5_K: (0.025, 0.04),
    TensorType.Q6_K: (0.012, 0.022),
    TensorType.IQ4_NL: (0.05, 0.09),
    TensorType.IQ4_XS: (0.05, 0.09),
    TensorType.MXFP4: (0.09, 0.14),
}


def encode(s: Scheme, rows: Rows, importance: Rows | None = None) -> Bytes:
    # Filled, so that a byte which the encoder leaves out shows.
    out = np.full((len(rows), s.row_bytes(rows.shape[1])), 0xA5, np.uint8)
    s.encode(rows, out, importance)
    return out


def decode(s: Scheme, packed: Bytes, columns: int) -> Rows:
    out = np.full((len(packed), columns), 12345, np.float32)
    s.decode(packed, out)
    return out


def assert_same_bytes(found: Bytes, expected: Bytes, rows: Rows) -> None:
    wrong = np.flatnonzero((found != expected).any(axis=1))
    if wrong.size:
        row = wrong[0]
        at = np.flatnonzero(found[row] != expected[row])
        raise AssertionError(
            f"{wrong.size} of {len(rows)} rows differ; row {row} first at byte {at[0]}: {found[row, at[0]]} instead "
            f"of {expected[row, at[0]]}; weights {rows[row, :8]} ..."
        )


def assert_same_floats(found: Rows, expected: Rows) -> None:
    """Bit for bit, except that a NaN may be any NaN: its payload depends on the order of operands."""
    same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    assert found.shape == expected.shape
    assert same.all(), f"{np.count_nonzero(~same)} values differ: {found[~same][:4]} instead of {expected[~same][:4]}"


def with_one_nan(type: TensorType, packed: Bytes) -> Bytes:
    """The same bytes with one NaN for all scales that are NaN.

    The mean square of a row with NaN of both signs is either of them: x86 returns the first operand of two NaN, and
    which one that is in a sum or product, C leaves to the compiler.
    """
    blocks = packed.copy().view(scheme(type).block)
    for name in blocks.dtype.names or ():
        if blocks.dtype[name] == np.float16:
            blocks[name][np.isnan(blocks[name])] = np.nan
    return blocks.view(np.uint8)


def gguf_decode(type: TensorType, packed: Bytes) -> Rows:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):
        found: Rows = dequantize(packed, GGMLQuantizationType(int(type)))
    return found


@each_written_type
def test_golden_vectors(type: TensorType) -> None:
    weights = golden.read(golden.WEIGHTS)
    expected = golden.read(golden.golden_file(type))
    assert "ggml" in str(expected.pop("build"))
    assert set(weights) == {*CASES, "SmolLM2"}
    weighted = {golden.weighted(case) for case in weights} if scheme(type).uses_importance else set()
    assert set(expected) == set(weights) | weighted
    for case, rows in weights.items():
        assert_same_bytes(encode(scheme(type), rows), expected[case], rows)
        if weighted:
            found = encode(scheme(type), rows, golden.importance(rows.shape[1]))
            assert_same_bytes(found, expected[golden.weighted(case)], rows)


def test_golden_vectors_are_those_of_the_table_and_no_others() -> None:
    expected = {golden.WEIGHTS.name} | {golden.golden_file(type).name for type in SCHEMES}
    assert {path.name for path in golden.FOLDER.glob("*.npz")} == expected


@each_written_type
@pytest.mark.parametrize("case", CASES)
def test_encodes_as_ggml(type: TensorType, case: str) -> None:
    rows = rows_of(case)
    assert_same_bytes(encode(scheme(type), rows), ggml.quantize(type, rows), rows)


@each_weighted_type
@pytest.mark.parametrize("case", CASES)
def test_encodes_with_importance_as_ggml(type: TensorType, case: str) -> None:
    rows = rows_of(case)
    for kind in IMPORTANCE:
        importance = importance_of(kind)
        found, expected = encode(scheme(type), rows, importance), ggml.quantize(type, rows, importance)
        try:
            assert_same_bytes(found, expected, rows)
        except AssertionError as error:
            raise AssertionError(f"importance {kind!r}: {error}") from None


@pytest.fixture(scope="module")
def real_rows(smollm2_gguf: Path) -> Rows:
    return smollm2_rows(smollm2_gguf)


@each_written_type
def test_encodes_real_weights_as_ggml(type: TensorType, real_rows: Rows) -> None:
    assert_same_bytes(encode(scheme(type), real_rows), ggml.quantize(type, real_rows), real_rows)


@each_weighted_type
def test_encodes_real_weights_with_importance_as_ggml(type: TensorType, real_rows: Rows) -> None:
    for kind in ("ordinary", "heavy-tailed", "some zeros"):
        importance = importance_of(kind)
        expected = ggml.quantize(type, real_rows, importance)
        assert_same_bytes(encode(scheme(type), real_rows, importance), expected, real_rows)
        assert (expected != ggml.quantize(type, real_rows)).any(), "the importance made no difference"


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -7.5, 2.0**-126, 2.0**-149, -(2.0**-130), 65504.0, 1e30, -3e38])
ordinary = st.floats(-1, 1, width=32)
drawn_rows = st.one_of(
    [
        hnp.arrays(np.float32, (1, COLUMNS), elements=elements, fill=fill)
        for elements, fill in ((finite, finite), (few, few), (ordinary, ordinary), (finite, ordinary))
    ]
)


@each_written_type
@given(rows=drawn_rows)
def test_encodes_drawn_weights_as_ggml(type: TensorType, rows: Rows) -> None:
    assert_same_bytes(encode(scheme(type), rows), ggml.quantize(type, rows), rows)


@each_weighted_type
@given(rows=drawn_rows, data=st.data())
def test_encodes_drawn_weights_and_importance_as_ggml(type: TensorType, rows: Rows, data: st.DataObject) -> None:
    positive = st.floats(0, width=32, allow_infinity=False)
    some = st.sampled_from([0.0, 1.0, 0.25, 2.0**-149, 1e-20, 1e30])
    importance = data.draw(
        st.one_of(
            hnp.arrays(np.float32, COLUMNS, elements=e, fill=e) for e in (positive, some, st.floats(0, 4, width=32))
        )
    )
    assert_same_bytes(encode(scheme(type), rows, importance), ggml.quantize(type, rows, importance), rows)


@each_written_type
def test_importance_is_checked(type: TensorType) -> None:
    s = scheme(type)
    rows, out = np.ones((2, COLUMNS), np.float32), np.zeros((2, s.row_bytes(COLUMNS)), np.uint8)
    for importance in (
        np.ones(COLUMNS - 1, np.float32),
        np.ones((2, COLUMNS), np.float32),
        np.ones(COLUMNS, np.float64),
        np.ones(2 * COLUMNS, np.float32)[::2],
    ):
        with pytest.raises(ValueError, match=f"{type.name}.*importance"):
            s.encode(rows, out, importance)


@each_type
def test_decodes_any_bytes_as_oracle_gguf_and_ggml(type: TensorType, rng: np.random.Generator) -> None:
    s = scheme(type)
    packed = rng.integers(0, 256, (64, s.row_bytes(COLUMNS)), np.uint8)
    found = decode(s, packed, COLUMNS)
    with np.errstate(all="ignore"):
        assert_same_floats(found, s.decode_oracle(packed))
    if type not in NOT_IN_GGUF:
        assert_same_floats(found, gguf_decode(type, packed))
    if type is not TensorType.F32:  # which ggml need not decode
        assert_same_floats(found, ggml.decode(type, packed))


@each_type
@given(data=st.data())
def test_decodes_drawn_bytes_as_oracle(type: TensorType, data: st.DataObject) -> None:
    s = scheme(type)
    packed = np.frombuffer(data.draw(st.binary(min_size=s.row_bytes(256), max_size=s.row_bytes(256))), np.uint8)[None]
    with np.errstate(all="ignore"):
        assert_same_floats(decode(s, packed, 256), s.decode_oracle(packed))


@each_written_type
@pytest.mark.parametrize("case", ["normal", "zeros", "denormal", "huge"])
def test_decodes_what_it_encoded_as_gguf(type: TensorType, case: str) -> None:
    s = scheme(type)
    packed = encode(s, rows_of(case))
    found = decode(s, packed, COLUMNS)
    with np.errstate(all="ignore"):
        assert_same_floats(found, s.decode_oracle(packed))
    assert_same_floats(found, gguf_decode(type, packed))


@each_written_type
def test_round_trip_error(type: TensorType, rng: np.random.Generator) -> None:
    s = scheme(type)
    rows = 0.02 * rng.standard_normal((64, COLUMNS), np.float32)
    error = decode(s, encode(s, rows), COLUMNS) - rows
    relative = float(np.sqrt((error**2).mean() / (rows**2).mean()))
    at_least, at_most = RELATIVE_ERROR[type]
    assert at_least <= relative <= at_most


@each_written_type
def test_zeros_decode_to_zeros(type: TensorType) -> None:
    s = scheme(type)
    rows = np.zeros((2, COLUMNS), np.float32)
    assert not decode(s, encode(s, rows), COLUMNS).any()


@each_written_type
def test_rows_are_independent_and_inputs_stay(type: TensorType) -> None:
    """What row chunks and threads rely on."""
    s = scheme(type)
    rows = rows_of("heavy-tailed")
    rows.flags.writeable = False  # as mapped files are
    whole = encode(s, rows)
    assert_same_bytes(np.concatenate([encode(s, rows[i : i + 1]) for i in range(len(rows))]), whole, rows)
    importance = importance_of("ordinary")
    importance.flags.writeable = False
    parts = [encode(s, rows[i : i + 1], importance) for i in range(len(rows))]
    assert_same_bytes(np.concatenate(parts), encode(s, rows, importance), rows)
    whole.flags.writeable = False
    assert_same_floats(decode(s, whole[3:5], COLUMNS), s.decode_oracle(whole)[3:5])


@each_written_type
def test_arrays_at_any_address(type: TensorType) -> None:
    """A mapped tensor may start at any byte."""
    s = scheme(type)
    rows = rows_of("normal")
    buffer = np.zeros(rows.nbytes + 1, np.uint8)
    shifted = buffer[1:].view(np.float32).reshape(rows.shape)
    shifted[:] = rows
    out_buffer = np.zeros(len(rows) * s.row_bytes(COLUMNS) + 1, np.uint8)
    out = out_buffer[1:].reshape(len(rows), -1)
    s.encode(shifted, out)
    assert_same_bytes(out, encode(s, rows), rows)
    s.decode(out, shifted)
    assert_same_floats(shifted, s.decode_oracle(out))


@each_written_type
def test_no_rows(type: TensorType) -> None:
    s = scheme(type)
    assert encode(s, np.zeros((0, COLUMNS), np.float32)).shape == (0, s.row_bytes(COLUMNS))
    assert encode(s, np.zeros((0, COLUMNS), np.float32), importance_of("ordinary")).size == 0


@each_written_type
def test_refuses_arrays_that_do_not_belong_together(type: TensorType) -> None:
    """The kernels check no bounds, so this is what stands between a wrong shape and a wild write."""
    s = scheme(type)
    rows = np.zeros((4, COLUMNS), np.float32)
    row_bytes = s.row_bytes(COLUMNS)
    for out in (
        np.zeros((4, row_bytes - 1), np.uint8),
        np.zeros((3, row_bytes), np.uint8),
        np.zeros(4 * row_bytes, np.uint8),
        np.zeros((4, row_bytes + 16), np.uint8)[:, :row_bytes],
    ):
        with pytest.raises(ValueError, match=type.name):
            s.encode(rows, out)
        with pytest.raises(ValueError, match=type.name):
            s.decode(out, rows)
    with pytest.raises(ValueError, match=type.name):
        s.encode(np.zeros((COLUMNS, 4), np.float32).T, np.zeros((4, row_bytes), np.uint8))
    with pytest.raises((ValueError, TypeError)):
        s.encode(rows.astype(np.float64), np.zeros((4, row_bytes), np.uint8))
    if BLOCK_LAYOUTS[type].block_size > 1:
        with pytest.raises(ValueError, match=type.name):
            s.row_bytes(COLUMNS + 1)


@each_written_type
@pytest.mark.parametrize("special", [(np.inf,), (np.inf, -np.inf), (np.nan,), (np.nan, -np.nan, np.inf, -np.inf)])
@pytest.mark.parametrize("density", [0.01, 0.5, 1.0])
def test_encodes_what_is_not_finite_as_ggml(type: TensorType, special: tuple[float, ...], density: float) -> None:
    """What --allow-nonfinite lets through."""
    rng = np.random.default_rng(0)
    rows = rows_of("any exponent")
    rows = np.where(rng.random(rows.shape) < density, rng.choice(special, rows.shape), rows).astype(np.float32)
    assert_same_bytes(encode(scheme(type), rows), ggml.quantize(type, rows), rows)
    if scheme(type).uses_importance:
        importance = importance_of("ordinary")
        found, expected = encode(scheme(type), rows, importance), ggml.quantize(type, rows, importance)
        if len(special) == 4:
            found, expected = with_one_nan(type, found), with_one_nan(type, expected)
        assert_same_bytes(found, expected, rows)


@pytest.mark.parametrize("type", FLOATS, ids=lambda type: type.name)
def test_float_types_encode_any_bits_as_ggml(type: TensorType) -> None:
    """Among them every kind of NaN: a float type keeps it, or ggml's choice of NaN."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1 << 32, (64, COLUMNS), np.uint32).view(np.float32)
    rows[:8] = (rng.integers(0, 1 << 24, (8, COLUMNS), np.uint32) | np.uint32(0x7F000000)).view(np.float32)
    assert_same_bytes(encode(scheme(type), rows), ggml.quantize(type, rows), rows)
