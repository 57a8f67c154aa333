"""The blockwise forms of ONNX Runtime against its own quantiser and operator."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from llmkit.quantize.blockwise import BITS, BLOCK_SIZES, BlockwiseFormat
from tests import onnx_runtime
from tests.quantize.cases import CASES, COLUMNS, rows_of, smollm2_rows

Rows = NDArray[np.float32]
Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]

FORMATS = [
    BlockwiseFormat(bits, size, symmetric) for bits in BITS for size in BLOCK_SIZES for symmetric in (True, False)
]


def name_of(form: BlockwiseFormat) -> str:
    return f"int{form.bits}-{form.block_size}{'' if form.symmetric else '-zero-points'}"


each_format = pytest.mark.parametrize("form", FORMATS, ids=name_of)


def empty(form: BlockwiseFormat, n: int, k: int, dtype: Any = np.float32) -> Arrays:
    # Filled, so that a byte which the encoder leaves out shows.
    codes = np.full(form.codes_shape(n, k), 0xA5, np.uint8)
    scales = np.full(form.scales_shape(n, k), 12345, dtype)
    return codes, scales, None if form.symmetric else np.full(form.zero_points_shape(n, k), 0xA5, np.uint8)


def encode(form: BlockwiseFormat, rows: Rows, dtype: Any = np.float32) -> Arrays:
    arrays = empty(form, *rows.shape, dtype)
    form.encode(rows, *arrays)
    return arrays


def decode(form: BlockwiseFormat, arrays: Arrays, columns: int) -> Rows:
    out = np.full((len(arrays[0]), columns), 12345, np.float32)
    form.decode(*arrays, out)
    return out


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Bit for bit, except that a scale that is NaN may be any NaN."""
    for name, left, right in zip(("codes", "scales", "zero points"), found, expected, strict=True):
        if left is None or right is None:
            assert left is right, name
            continue
        assert left.dtype == right.dtype
        same = (left == right) & (np.signbit(left) == np.signbit(right)) | (np.isnan(left) & np.isnan(right))
        assert same.all(), f"{np.count_nonzero(~same)} {name} differ, first at {np.argwhere(~same)[0]}"


def check_as_onnx_runtime(form: BlockwiseFormat, rows: Rows, dtype: Any = np.float32) -> None:
    expected = onnx_runtime.quantize(rows.astype(dtype), form.bits, form.block_size, form.symmetric)
    assert_same(encode(form, rows, dtype), expected)


@each_format
@pytest.mark.parametrize("case", CASES)
def test_encodes_as_onnx_runtime(form: BlockwiseFormat, case: str) -> None:
    check_as_onnx_runtime(form, rows_of(case))


@each_format
@pytest.mark.parametrize("case", ["normal", "tiny", "huge", "zeros", "any exponent"])
def test_float16_scales_are_those_of_float16_weights(form: BlockwiseFormat, case: str) -> None:
    with np.errstate(over="ignore"):
        rows = rows_of(case).astype(np.float16).astype(np.float32)
    check_as_onnx_runtime(form, rows, np.float16)


@each_format
@pytest.mark.parametrize("columns", [1, 2, 7, 16, 31, 32, 33, 100, 101, 241, 257, 496])
def test_rows_that_are_not_whole_blocks(form: BlockwiseFormat, columns: int) -> None:
    for case in ("normal", "one-sided", "zeros", "grid"):
        check_as_onnx_runtime(form, np.ascontiguousarray(rows_of(case)[:, :columns]))


@each_format
@pytest.mark.parametrize("special", [(np.inf,), (np.nan,), (np.nan, np.inf, -np.inf)])
@pytest.mark.parametrize("density", [0.003, 0.5, 1.0])
def test_encodes_what_is_not_finite_as_onnx_runtime(
    form: BlockwiseFormat, special: tuple[float, ...], density: float
) -> None:
    rng = np.random.default_rng(0)
    rows = rows_of("any exponent")
    rows = np.where(rng.random(rows.shape) < density, rng.choice(special, rows.shape), rows).astype(np.float32)
    check_as_onnx_runtime(form, rows)


@pytest.fixture(scope="module")
def real_rows(smollm2_gguf: Path) -> Rows:
    return np.ascontiguousarray(smollm2_rows(smollm2_gguf)[::16])


@each_format
def test_encodes_real_weights_as_onnx_runtime(form: BlockwiseFormat, real_rows: Rows) -> None:
    check_as_onnx_runtime(form, real_rows)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -7.5, 2.0**-149, 65504.0, -3e38])


@given(
    form=st.sampled_from(FORMATS),
    rows=st.integers(1, 80).flatmap(
        lambda columns: st.one_of([hnp.arrays(np.float32, (1, columns), elements=e, fill=few) for e in (finite, few)])
    ),
)
def test_encodes_drawn_weights_as_onnx_runtime(form: BlockwiseFormat, rows: Rows) -> None:
    check_as_onnx_runtime(form, rows)


@each_format
@pytest.mark.parametrize("columns", [COLUMNS, 100, 101])
def test_decodes_to_what_the_operator_multiplies_by(form: BlockwiseFormat, columns: int) -> None:
    """Times the identity the operator gives the weights themselves."""
    arrays = encode(form, np.ascontiguousarray(rows_of("heavy-tailed")[:, :columns]))
    product = onnx_runtime.multiply(np.eye(columns, dtype=np.float32), arrays, form.bits, form.block_size)
    np.testing.assert_array_equal(decode(form, arrays, columns), product.T)


@each_format
@pytest.mark.parametrize("columns", [1, 15, 16, 31, 100, 257, COLUMNS])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_decodes_any_bytes_as_the_oracle(form: BlockwiseFormat, columns: int, dtype: Any) -> None:
    rng = np.random.default_rng(columns)
    codes, scales, zero_points = empty(form, 9, columns, dtype)
    codes = rng.integers(0, 256, codes.shape, np.uint8)
    scales = rng.standard_normal(scales.shape).astype(dtype)
    if zero_points is not None:
        zero_points = rng.integers(0, 256, zero_points.shape, np.uint8)
    found = decode(form, (codes, scales, zero_points), columns)
    np.testing.assert_array_equal(found, form.decode_oracle(codes, scales, zero_points, columns))


@each_format
def test_error_is_at_most_one_step(form: BlockwiseFormat, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((8, COLUMNS), np.float32)
    arrays = encode(form, rows)
    error = np.abs(decode(form, arrays, COLUMNS) - rows)
    steps = np.repeat(np.abs(arrays[1]), form.block_size, axis=1)
    # Rounding errs by half a step, that of the zero point by another half; a symmetric code lacks the highest value.
    assert (error <= steps * 1.001).all()
    assert error.mean() > 0.2 * steps.mean()


@each_format
def test_threads_may_each_take_some_rows(form: BlockwiseFormat) -> None:
    rows = np.tile(rows_of("heavy-tailed"), (8, 1))[:, :401].copy()
    rows.flags.writeable = False  # as mapped files are
    arrays = empty(form, *rows.shape)

    def run(at: slice) -> None:
        form.encode(rows[at], *(array if array is None else array[at] for array in arrays))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, (slice(i, i + 7) for i in range(0, len(rows), 7))))
    assert_same(arrays, encode(form, rows))


@each_format
def test_no_weights(form: BlockwiseFormat) -> None:
    for shape in ((0, COLUMNS), (4, 0)):
        rows = np.zeros(shape, np.float32)
        assert decode(form, encode(form, rows), shape[1]).shape == shape


@pytest.mark.parametrize(("bits", "block_size"), [(2, 32), (4, 8), (4, 48), (8, 512), (4, 0)])
def test_refuses_forms_that_the_operator_lacks(bits: int, block_size: int) -> None:
    with pytest.raises(ValueError, match=f"not {bits} and {block_size}"):
        BlockwiseFormat(bits, block_size, True)


def test_refuses_arrays_that_do_not_belong_together() -> None:
    """The kernels check no bounds, so this is what stands between a wrong shape and a wild write."""
    form = BlockwiseFormat(4, 32, False)
    rows = np.zeros((4, 100), np.float32)
    codes, scales, zero_points = empty(form, 4, 100)
    assert zero_points is not None
    wrong: list[tuple[str, tuple[Any, ...]]] = [
        ("codes", (rows, codes[:, :3], scales, zero_points)),
        ("codes", (rows, codes.view(np.int8), scales, zero_points)),
        ("scales", (rows, codes, scales[:3], zero_points)),
        ("scales", (rows, codes, scales.astype(np.float64), zero_points)),
        ("zero points", (rows, codes, scales, None)),
        ("zero points", (rows, codes, scales, zero_points[:, :1])),
        ("weights", (rows.astype(np.float16), codes, scales, zero_points)),
        ("weights", (rows.reshape(-1), codes, scales, zero_points)),
        ("contiguous", (np.zeros((100, 4), np.float32).T, codes, scales, zero_points)),
        ("contiguous", (rows, np.zeros((4, 4, 32), np.uint8)[:, :, ::2], scales, zero_points)),
    ]
    for message, (weights, *arrays) in wrong:
        with pytest.raises(ValueError, match=message):
            form.encode(weights, *arrays)
        with pytest.raises(ValueError, match=message):
            form.decode(*arrays, weights)
    with pytest.raises(ValueError, match="no zero points"):
        BlockwiseFormat(4, 32, True).encode(rows, codes, scales, zero_points)


def digest() -> str:
    """A hash of what some rows encode and decode to in every form."""
    found = sha256()
    for form in FORMATS:
        for case in ("normal", "grid", "any exponent", "zeros"):
            rows = np.ascontiguousarray(rows_of(case)[:, :401])
            arrays = encode(form, rows)
            for array in (*arrays, decode(form, arrays, 401)):
                found.update(b"" if array is None else array.tobytes())
    return found.hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names processors of the x86 family")
@pytest.mark.parametrize(("cpu", "features"), [("x86-64", "+sse2,-avx"), ("haswell", "+avx2,+fma,+f16c,-avx512f")])
def test_the_same_bits_on_other_processors(cpu: str, features: str, tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", "from tests.quantize.test_blockwise import digest; print(digest())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == digest(), done.stderr
