"""Verifying: the errors it reports are those of the files, and what is wrong is never written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.convert.verify import EXPECTED_ERROR, is_cheap
from llmkit.errors import VerificationError
from llmkit.formats.gguf import open_gguf
from llmkit.formats.output import OutputFile
from llmkit.kernels.difference import squared_error
from llmkit.quantize.recipes import WRITABLE_TYPES
from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from tests.tinygguf import TinyGGUF, importance_of, write_importance


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return TinyGGUF(n_layers=1).write(folder / "tiny-BF16.gguf")


def test_every_type_that_is_written_has_an_expectation() -> None:
    assert set(EXPECTED_ERROR) == WRITABLE_TYPES


@pytest.mark.parametrize("type", EXPECTED_ERROR, ids=lambda type: type.name)
def test_the_expectations_are_the_errors_on_normal_weights(type: TensorType, rng: np.random.Generator) -> None:
    weights = rng.standard_normal((64, 4096), np.float32)
    target = scheme(type)
    packed = np.empty((64, target.row_bytes(4096)), np.uint8)
    decoded = np.empty_like(weights)
    target.encode(weights, packed)
    target.decode(packed, decoded)
    relative = float(np.sqrt(np.mean((decoded - weights) ** 2) / np.mean(weights**2)))
    assert relative == pytest.approx(EXPECTED_ERROR[type], rel=0.02)


@pytest.mark.parametrize("to", ["q4_k_m", "q8_0", "f16"])
@pytest.mark.parametrize("memory", ["1MiB", "1GiB"])
def test_the_errors_are_those_of_the_file(to: str, memory: str, source: Path, tmp_path: Path) -> None:
    result = llmkit.quantize(source, to, output=tmp_path / "out.gguf", verify=True, memory=memory, threads=2)
    assert result.verification is not None
    found = {t.name: t.relative for t in result.verification.tensors}
    error = square = 0.0
    with open_gguf(source) as before, open_gguf(result.path) as after:
        assert list(found) == list(after.tensors)
        for name in after.tensors:
            weights, decoded = (decode(file, name) for file in (before, after))
            difference, size = np.sum((decoded - weights) ** 2), np.sum(weights**2)
            assert found[name] == pytest.approx(math.sqrt(difference / size), rel=1e-4)
            if difference:
                error, square = error + difference, square + size
    assert result.verification.relative == pytest.approx(math.sqrt(error / square), rel=1e-4)
    worst = result.verification.worst(3)
    assert [t.relative for t in worst] == sorted(found.values(), reverse=True)[:3]


def decode(file: llmkit.formats.gguf.GGUFFile, name: str) -> np.ndarray:  # type: ignore[name-defined]
    tensor = file.tensors[name]
    rows = np.empty((tensor.n_elements // tensor.shape[-1], tensor.shape[-1]), np.float32)
    scheme(TensorType[tensor.dtype]).decode(file.raw(name).reshape(len(rows), -1), rows)
    return rows.astype(np.float64)


@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", "output_norm.weight"])
def test_what_was_not_written_right_gets_no_name(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensor, encoded or copied, is named."""
    plan = llmkit.quantize(source, "q4_k_m", output=tmp_path / "out.gguf", dry_run=True).plan
    tensor = next(t for t in plan.tensors if t.name == name)
    write_at = OutputFile.write_at

    def lossy(self: OutputFile, data: memoryview | bytes, offset: int) -> None:
        if tensor.offset <= offset < tensor.offset + tensor.nbytes:
            data = bytes(len(data))
        write_at(self, data, offset)

    monkeypatch.setattr(OutputFile, "write_at", lossy)
    with pytest.raises(VerificationError, match=rf"tensor '{name}'.* is off by (1|inf) .*nothing was written"):
        llmkit.quantize(source, "q4_k_m", output=tmp_path / "out.gguf", verify=True)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_weights_that_a_type_cannot_hold(tmp_path: Path) -> None:
    """Q4_0's scales are float16: below 6e-8 they are zero. llama-quantize writes such a file without a word."""
    model = TinyGGUF(n_layers=1, type="F32")
    weights = model.weights()
    weights["blk.0.attn_q.weight"] *= np.float32(1e-8)
    source = model.write(tmp_path / "in.gguf", weights)
    with pytest.raises(VerificationError, match=r"'blk.0.attn_q.weight', read back as Q4_0, is off by 1 .*--no-verify"):
        llmkit.quantize(source, "q4_0", output=tmp_path / "out.gguf")
    llmkit.quantize(source, "q4_0", output=tmp_path / "out.gguf", verify=False)
    llmkit.quantize(source, "q4_0", output=tmp_path / "o.gguf", tensor_types=["blk.0.attn_q=bf16"], verify=True)


def test_columns_without_importance_may_be_off(tmp_path: Path) -> None:
    """An encoder may give them up for those that count: as long as zeros would be no better, that is no fault."""
    model = TinyGGUF(n_layers=1)
    importance = importance_of(model.weights())
    for values in importance.values():
        values[:, 8:] = 0
    imatrix = write_importance(tmp_path / "imatrix.gguf", importance)
    source = model.write(tmp_path / "in.gguf")
    result = llmkit.quantize(source, "q4_0", output=tmp_path / "out.gguf", imatrix=imatrix, verify=True)
    assert result.verification is not None
    by_name = {t.name: t for t in result.verification.tensors}
    assert by_name["blk.0.ffn_up.weight"].limit == 1
    assert by_name["token_embd.weight"].limit < 0.5
    assert by_name["blk.0.ffn_up.weight"].relative > 1.05 * EXPECTED_ERROR[TensorType.Q4_0]


def test_allowed_values_that_are_not_finite_are_no_failure(tmp_path: Path) -> None:
    model = TinyGGUF(n_layers=1, type="F32")
    weights = model.weights()
    weights["blk.0.attn_q.weight"][3, 5] = np.nan
    source = model.write(tmp_path / "in.gguf", weights)
    result = llmkit.quantize(source, "q8_0", output=tmp_path / "out.gguf", verify=True, allow_nonfinite=True)
    assert result.verification is not None
    errors = {t.name: t.relative for t in result.verification.tensors}
    assert math.isnan(errors["blk.0.attn_q.weight"])
    assert errors["blk.0.attn_k.weight"] < 0.01
    as_json = result.to_dict()["verification"]
    assert as_json["tensors"]["blk.0.attn_q.weight"] is None


@pytest.mark.parametrize(
    ("to", "weighted", "expected"),
    [
        ("q4_k_m", False, True),
        ("iq4_nl", False, True),
        ("q4_0", False, False),
        ("q4_0", True, True),
        ("f16", False, False),
    ],
)
def test_verifying_is_the_default_where_it_is_cheap(
    to: str, weighted: bool, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.convert import verify

    model = TinyGGUF(n_layers=1)
    source = model.write(tmp_path / "in.gguf")
    imatrix = write_importance(tmp_path / "imatrix.gguf", importance_of(model.weights())) if weighted else None
    plan = llmkit.quantize(source, to, imatrix=imatrix, output=tmp_path / "out.gguf", dry_run=True).plan
    assert is_cheap(plan)  # it is small
    monkeypatch.setattr(verify, "_FEW_WEIGHTS", 1000)
    assert is_cheap(plan) is expected
    result = llmkit.quantize(source, to, imatrix=imatrix, output=tmp_path / "out.gguf")
    assert (result.verification is not None) is expected


@pytest.mark.parametrize("size", [0, 1, 15, 1024, 5000])
@pytest.mark.parametrize("scale", [1e-42, 1e-25, 1.0, 1e25, 3e37])
def test_sums_of_squares(size: int, scale: float, rng: np.random.Generator) -> None:
    weights, decoded = (rng.standard_normal(size).astype(np.float32) * np.float32(scale) for _ in range(2))
    error, square = squared_error(weights, decoded)
    wide = weights.astype(np.float64)
    assert error == pytest.approx(float(np.sum((decoded - wide) ** 2)), rel=1e-5, abs=0)
    assert square == pytest.approx(float(np.sum(wide**2)), rel=1e-5, abs=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 2000, 2999])
def test_sums_of_squares_tell_of_values_that_are_not_finite(value: float, place: int) -> None:
    weights = np.ones(3000, np.float32)
    decoded = weights.copy()
    decoded[place] = value
    assert not math.isfinite(squared_error(weights, decoded)[0])
    assert not math.isfinite(squared_error(decoded, decoded)[1])
    assert math.isfinite(squared_error(weights, weights)[1])
