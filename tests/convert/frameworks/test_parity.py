"""Every format that runs here gives transformers' tokens and logits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmkit
from llmkit.convert.archs import FAMILIES
from llmkit.formats.exported import read_exported
from llmkit.runtimes.exported import ENGINES
from tests.convert.frameworks.reference import CONTEXT, N_PROMPT, reference, require

# Different blocks: grouped queries; norms of heads, sliding windows, two rotations; experts; sinks, biases, experts.
VARIED = ["llama", "gemma3", "qwen3_moe", "gpt_oss", "phi3, longrope long"]
FAST = ["onnx-standard", "openvino-fp32", "stablehlo", "torchscript"]
ALL = [family.model_type for family in FAMILIES if family.structure is not None]


@pytest.mark.parametrize("family", VARIED)
@pytest.mark.parametrize("target", sorted(ENGINES))
def test_greedy_tokens(target: str, family: str, tmp_path: Path) -> None:
    require(target)
    expected = reference(family)
    precision = "-fp32" if target == "openvino" else ""
    folder = llmkit.convert(expected.folder, target + precision, output=tmp_path / "m", context=CONTEXT, threads=2).path
    ids, logits = expected.greedy(folder)
    assert ids == expected.ids
    assert np.abs(logits - expected.logits).max() < 2e-4


@pytest.mark.parametrize("family", [family for family in ALL if family not in VARIED])
def test_the_other_families(family: str, tmp_path: Path) -> None:
    target = FAST[ALL.index(family) % len(FAST)]
    expected = reference(family)
    folder = llmkit.convert(expected.folder, target, output=tmp_path / "m", context=CONTEXT, threads=2).path
    ids, logits = expected.greedy(folder)
    assert ids == expected.ids
    assert np.abs(logits - expected.logits).max() < 2e-4


@pytest.mark.parametrize(
    ("target", "largest"),
    [("openvino-fp16", 1e-3), ("openvino-int8", 0.05), ("openvino-int4", 0.7), ("litert-int8", 0.05)],
)
def test_rounded_weights(target: str, largest: float, tmp_path: Path) -> None:
    require(target.partition("-")[0])
    expected = reference("llama")
    folder = llmkit.convert(expected.folder, target, output=tmp_path / "m", context=CONTEXT, threads=2).path
    _, logits = expected.greedy(folder)
    wanted = expected.logits[:N_PROMPT]  # the tokens that follow may be others
    error = np.linalg.norm(logits[:N_PROMPT] - wanted) / np.linalg.norm(wanted)
    assert largest / 100 < error < largest


def test_importance(tmp_path: Path) -> None:
    """Columns are balanced by it, and rounded with feedback: the model is still the same, but for rounding."""
    require("openvino")
    expected = reference("llama")
    text = tmp_path / "text.txt"
    text.write_text("Of many columns some matter more than others do. " * 40)
    options: dict[str, Any] = {"process_output": True, "chunks": 2, "chunk_size": 64, "products": 64}
    matrix = llmkit.compute_importance(expected.folder, text, output=tmp_path / "imatrix.gguf", **options).path
    made = llmkit.convert(expected.folder, "openvino-int4", output=tmp_path / "m", context=CONTEXT, imatrix=matrix)
    assert any("balanced by importance" in note for note in made.plan.notes)
    assert any("rounded with feedback" in note for note in made.plan.notes)
    assert read_exported(made.path).values["imatrix"]["name"] == "imatrix.gguf"
    _, logits = expected.greedy(made.path)
    wanted = expected.logits[:N_PROMPT]
    assert 0.01 < np.linalg.norm(logits[:N_PROMPT] - wanted) / np.linalg.norm(wanted) < 0.7
    with pytest.raises(llmkit.LlmkitError, match="openvino-int8 takes no imatrix: nothing in it has 4 bits"):
        llmkit.convert(expected.folder, "openvino-int8", output=tmp_path / "n", imatrix=matrix)


def test_a_full_cache(tmp_path: Path) -> None:
    """Up to the last position, where a run of fixed length does not fit any more."""
    expected = reference("llama")
    n = len(expected.ids)
    folder = llmkit.convert(expected.folder, "stablehlo", output=tmp_path / "m", context=n, threads=2).path
    with llmkit.load(folder) as session:
        found = session.logits(expected.ids)
        assert session.info.n_context == n
        with pytest.raises(llmkit.LlmkitError, match="context"):
            session.logits([*expected.ids, 1])
    assert np.abs(found - expected.logits).max() < 2e-4


def test_rows_come_as_from_other_engines(tmp_path: Path) -> None:
    """Also where fewer tokens pass the model at once."""
    require("stablehlo")
    expected = reference("llama")
    folder = llmkit.convert(expected.folder, "stablehlo", output=tmp_path / "m", context=CONTEXT, threads=2).path
    with llmkit.load(folder) as session:
        parts = [rows.copy() for rows in session.each_logits(expected.ids, skip=3, at_a_time=70)]
    assert read_exported(folder).tokens_at_once < 70
    assert [len(part) for part in parts] == [70, len(expected.ids) - 73]
    assert np.abs(np.concatenate(parts) - expected.logits[3:]).max() < 2e-4


@pytest.mark.parametrize("target", ["torch", "openvino-fp32", "onnx-standard", "stablehlo", "executorch"])
def test_what_the_cache_shares_is_kept(target: str, tmp_path: Path) -> None:
    require(target.removesuffix("-fp32"))
    expected = reference("llama")
    folder = llmkit.convert(expected.folder, target, output=tmp_path / "m", context=CONTEXT, threads=2).path
    with llmkit.load(folder) as session:
        continuations = [expected.ids[30:40], expected.ids[50:53], expected.ids[30:60]]
        found = [part.copy() for part in session.each_continuation(expected.ids[:30], continuations)]
    assert [len(part) for part in found] == [10, 3, 30]
    assert np.abs(found[0] - expected.logits[29:39]).max() < 2e-4
    assert np.abs(found[2] - expected.logits[29:59]).max() < 2e-4


def test_gguf_files_and_adapters_are_sources_too(tmp_path: Path) -> None:
    expected = reference("llama")
    gguf = llmkit.convert(expected.folder, "gguf-f32", output=tmp_path / "m.gguf").path
    folder = llmkit.convert(gguf, "onnx-standard", output=tmp_path / "m", context=CONTEXT).path
    _, logits = expected.greedy(folder)
    assert np.abs(logits - expected.logits).max() < 2e-4
    with pytest.raises(llmkit.LlmkitError, match="GGUF file"):
        llmkit.convert(gguf, "onnx-standard", output=tmp_path / "n", lora=[os.fspath(tmp_path)])
