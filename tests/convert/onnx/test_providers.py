"""Models for other providers and in other precisions, run on the CPU as far as it goes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.errors import UnsupportedError
from llmkit.formats.genai import read_genai_folder
from tests.tinymodels import TinyLlama

SCRIPTS = str(Path(__file__).resolve().parents[3] / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

FAMILIES: dict[str, Any] = import_module("parities.families").FAMILIES


def logits(folder: Path) -> NDArray[np.float32]:
    with llmkit.load(folder, n_threads=1, device="cpu") as session:
        return session.logits(list(range(3, 67)))


def made(name: str, folder: Path, **settings: Any) -> Path:
    row = FAMILIES[name]
    import_module("parities.tiny").make(name, replace(row, settings={**row.settings, **settings}), folder)
    return folder


CASES = [(name, provider) for name in ("llama", "qwen3", "gemma3", "phi3, longrope long", "olmo2")
         for provider in ("cpu", "cuda")]  # fmt: skip


@pytest.mark.parametrize(("name", "provider"), [*CASES, ("llama", "webgpu"), ("mixtral", "dml")])
def test_float16(name: str, provider: str, tmp_path: Path) -> None:
    checkpoint = made(name, tmp_path / "m")
    exact = logits(llmkit.convert(checkpoint, "onnx-fp32", output=tmp_path / "a").path)
    folder = llmkit.convert(checkpoint, "onnx-fp16", output=tmp_path / "b", provider=provider).path
    found = read_genai_folder(folder)
    assert ("FusedMatMul" in found.model.operators) == (provider in ("cpu", "cuda"))
    assert {t.dtype for t in found.model.tensors.values() if t.location} == {"FLOAT16"}
    difference = np.abs(logits(folder) - exact)
    assert difference.max() < 1e-2 * np.ptp(exact)
    assert np.median(difference) < 1e-3 * np.ptp(exact)


@pytest.mark.parametrize("provider", ["cuda", "dml", "webgpu"])
def test_what_a_provider_needs(provider: str, tmp_path: Path) -> None:
    checkpoint = TinyLlama(dtype="F32").write(tmp_path / "m")
    folder = llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "o", provider=provider).path
    config = json.loads((folder / "genai_config.json").read_text())
    (options,) = config["model"]["decoder"]["session_options"]["provider_options"]
    assert list(options) == [provider]
    found = read_genai_folder(folder)
    assert "RMSNormalization" not in found.model.operators
    assert {t.dtype for t in found.model.tensors.values() if t.location} == {"FLOAT16", "UINT8"}
    on_cpu = llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "c", accuracy_level=1).path
    # The same codes but for those that the rounding of scales to float16 moves.
    assert np.abs(logits(folder) - logits(on_cpu)).max() < 0.05 * np.ptp(logits(on_cpu))


def test_a_provider_that_is_not_known(tmp_path: Path) -> None:
    checkpoint = TinyLlama().write(tmp_path / "m")
    with pytest.raises(UnsupportedError, match="'npu'; known: cpu, cuda, dml, webgpu"):
        llmkit.convert(checkpoint, "onnx-fp16", output=tmp_path / "o", provider="npu")


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_quantised_experts(name: str, tmp_path: Path) -> None:
    sizes = {"intermediate_size": 64, "moe_intermediate_size": 64}
    checkpoint = made(name, tmp_path / "m", **sizes)
    exact = logits(llmkit.convert(checkpoint, "onnx-fp32", output=tmp_path / "a").path)
    close = llmkit.convert(
        checkpoint, "onnx-int8", output=tmp_path / "b", accuracy_level=1, tensor_types=["attn|embd|output=float"]
    ).path
    assert read_genai_folder(close).model.operators["QMoE"] > 0
    # A router near a tie chooses another expert for some tokens; most are as they were.
    assert np.median(np.abs(logits(close) - exact)) < 1e-2 * np.ptp(exact)


def test_experts_that_are_no_whole_blocks(tmp_path: Path) -> None:
    checkpoint = made("qwen3_moe", tmp_path / "m", moe_intermediate_size=40)
    result = llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "o")
    (fallback,) = result.plan.fallbacks
    assert "rows of 40 weights are no whole blocks of 32" in fallback.reason
    operators = read_genai_folder(result.path).model.operators
    assert operators["MoE"] > 0
    assert "QMoE" not in operators
    assert np.isfinite(logits(result.path)).all()
