"""What only ONNX computes of a family, and the same model from a GGUF file."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmkit

SCRIPTS = str(Path(__file__).resolve().parents[3] / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

FAMILIES: dict[str, Any] = import_module("parities.families").FAMILIES
SLIDING = {"use_sliding_window": True, "sliding_window": 12}


def compare(row: Any, name: str, folder: Path) -> Any:
    model = import_module("parities.tiny").make(name, row, folder)
    converted = llmkit.convert(folder, "onnx-fp32", output=folder.with_name("onnx")).path
    n_vocab = model.config.get_text_config().vocab_size
    return import_module("parities.logits").compare_onnx(model, converted, n_vocab)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # llama.cpp attends to everything in these families; the texts are longer than the windows.
        ("mistral", {"sliding_window": 12}),
        ("mixtral", {"sliding_window": 12}),
        ("qwen2", {**SLIDING, "max_window_layers": 1, "layer_types": None}),
        ("qwen3", {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}),
        ("smollm3", {**SLIDING, "layer_types": None}),
        ("phi3", {"sliding_window": 12}),
    ],
)
def test_sliding_windows(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    row = FAMILIES[name]
    found = compare(replace(row, settings={**row.settings, **settings}), name, tmp_path / "model")
    assert found.is_good, found


def test_a_ramp_that_is_not_truncated(tmp_path: Path) -> None:
    row = FAMILIES["gpt_oss"]
    rope = {**row.settings["rope_parameters"], "truncate": False}
    found = compare(replace(row, settings={**row.settings, "rope_parameters": rope}), "gpt_oss", tmp_path / "model")
    assert found.is_good, found


@pytest.mark.parametrize(
    "name",
    [
        *("llama, llama3 scaling", "qwen2, yarn", "qwen3", "gemma3", "phi3, longrope long", "smollm3", "olmo2"),
        *("granite, tied", "qwen3_moe", "mixtral", "gpt_oss", "gpt_oss, mxfp4"),
    ],
)
def test_the_same_model_from_a_gguf_file(name: str, tmp_path: Path) -> None:
    folder = tmp_path / import_module("parities.checking").folder_name(name)
    import_module("parities.tiny").make(name, FAMILIES[name], folder)
    gguf = llmkit.convert(folder, "gguf-f32", output=tmp_path / "model.gguf").path
    direct = llmkit.convert(folder, "onnx-int8", output=tmp_path / "direct").path
    through = llmkit.convert(gguf, "onnx-int8", output=tmp_path / "through").path
    assert (direct / "model.onnx").read_bytes() == (through / "model.onnx").read_bytes()
    a, b = (np.fromfile(path / "model.onnx.data", np.uint8) for path in (direct, through))
    assert np.array_equal(a, b)
    texts = ["Hello there.", "naïve 日本 1234"]
    with llmkit.load(direct, n_threads=1) as one, llmkit.load(through, n_threads=1) as other:
        assert [one.tokenize(text) for text in texts] == [other.tokenize(text) for text in texts]
        assert one.info.architecture == other.info.architecture
