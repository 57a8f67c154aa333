"""Types that are read but not written: on what ggml's encoder makes, at the edges of their decoders, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.errors import UnsupportedError
from llmkit.quantize.schemes import SCHEMES, scheme
from llmkit.types import BLOCK_LAYOUTS, TensorType
from tests import ggml
from tests.quantize import golden

COLUMNS = 512
READ_ONLY = [type for type in SCHEMES if scheme(type).encoder is None]
each_type = pytest.mark.parametrize("type", READ_ONLY, ids=lambda type: type.name)

# Root mean square error on normal weights that ggml encodes, relative to that of the weights: (at least, at most). The
# types of one and of ternary weights are made for networks trained so, and are far off on others.
RELATIVE_ERROR = {
    TensorType.IQ1_S: (0.46, 0.52),
    TensorType.IQ1_M: (0.42, 0.48),
    TensorType.IQ2_XXS: (0.32, 0.37),
    TensorType.IQ2_XS: (0.28, 0.32),
    TensorType.IQ2_S: (0.23, 0.27),
    TensorType.IQ3_XXS: (0.16, 0.2),
    TensorType.IQ3_S: (0.12, 0.16),
    TensorType.TQ1_0: (0.75, 0.9),
    TensorType.TQ2_0: (0.75, 0.9),
    TensorType.NVFP4: (0.08, 0.12),
    TensorType.Q1_0: (0.55, 0.65),
    TensorType.Q2_0: (0.65, 0.8),
}
# ggml searches neighbours in these codebooks for seconds before it encodes the first row.
SLOW = (TensorType.IQ1_S, TensorType.IQ1_M, TensorType.IQ2_XXS, TensorType.IQ2_XS, TensorType.IQ2_S)


def decode(type: TensorType, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    layout = BLOCK_LAYOUTS[type]
    out = np.full((len(packed), packed.shape[1] // layout.block_bytes * layout.block_size), 12345, np.float32)
    scheme(type).decode(packed, out)
    return out


@each_type
def test_golden_vectors(type: TensorType) -> None:
    expected = golden.read(golden.golden_file(type))
    assert set(expected) == {"build", golden.PACKED, golden.DECODED}
    assert "ggml" in str(expected["build"])
    np.testing.assert_array_equal(decode(type, expected[golden.PACKED]), expected[golden.DECODED])


@pytest.mark.parametrize(
    "type",
    [pytest.param(type, marks=pytest.mark.slow if type in SLOW else ()) for type in RELATIVE_ERROR],
    ids=lambda type: type.name,
)
def test_decodes_what_ggml_encoded(type: TensorType, rng: np.random.Generator) -> None:
    rows = 0.02 * rng.standard_normal((16, COLUMNS), np.float32)
    packed = ggml.quantize(type, rows, np.ones(COLUMNS, np.float32))
    found = decode(type, packed)
    np.testing.assert_array_equal(found, ggml.decode(type, packed))
    relative = float(np.sqrt(((found - rows) ** 2).mean() / (rows**2).mean()))
    at_least, at_most = RELATIVE_ERROR[type]
    assert at_least <= relative <= at_most


def test_every_type_is_decoded_but_one_that_nobody_decodes() -> None:
    """Q8_1 holds ggml's activations; neither ggml nor gguf-py has a decoder to agree with."""
    integers = {TensorType.I8, TensorType.I16, TensorType.I32, TensorType.I64}
    missing = set(TensorType) - set(SCHEMES) - integers - {TensorType.F64}
    assert ggml.decoder(TensorType.Q8_1) is None
    assert missing == {TensorType.Q8_1}


@each_type
def test_decodes_scales_that_are_not_finite_as_ggml(type: TensorType) -> None:
    """Every byte of the block in turn holds the exponent of infinities and NaN."""
    block_bytes = BLOCK_LAYOUTS[type].block_bytes
    packed = np.full((block_bytes, block_bytes), 0x3C, np.uint8)
    np.fill_diagonal(packed, 0x7F)
    np.testing.assert_array_equal(decode(type, packed), ggml.decode(type, packed))


@each_type
def test_rows_are_independent_and_may_lie_at_any_address(type: TensorType, rng: np.random.Generator) -> None:
    row_bytes = scheme(type).row_bytes(COLUMNS)
    packed = np.frombuffer(b"\0" + rng.bytes(4 * row_bytes), np.uint8)[1:].reshape(4, row_bytes)  # read-only
    weights = np.zeros(4 * 4 * COLUMNS + 1, np.uint8)[1:].view(np.float32).reshape(4, COLUMNS)
    scheme(type).decode(packed, weights)
    for i in range(4):
        np.testing.assert_array_equal(decode(type, packed[i : i + 1])[0], weights[i])
    assert decode(type, packed[:0]).shape == (0, COLUMNS)


@each_type
def test_writes_only_its_rows(type: TensorType, rng: np.random.Generator) -> None:
    packed = rng.integers(0, 256, (2, scheme(type).row_bytes(COLUMNS)), np.uint8)
    guarded = np.full((4, COLUMNS), 12345, np.float32)
    scheme(type).decode(packed, guarded[1:3])
    assert (guarded[[0, 3]] == 12345).all()


@each_type
def test_refuses_to_encode_and_arrays_that_do_not_belong_together(type: TensorType) -> None:
    s = scheme(type)
    rows, packed = np.zeros((2, COLUMNS), np.float32), np.zeros((2, s.row_bytes(COLUMNS)), np.uint8)
    with pytest.raises(UnsupportedError, match=f"{type.name} can be read but not written"):
        s.encode(rows, packed)
    for wrong in (packed[:, :-1].copy(), packed[:1], packed[0], np.zeros((2, packed.shape[1] + 8), np.uint8)[:, :-8]):
        with pytest.raises(ValueError, match=type.name):
            s.decode(wrong, rows)
    with pytest.raises(ValueError, match=type.name):
        s.row_bytes(COLUMNS + 1)
