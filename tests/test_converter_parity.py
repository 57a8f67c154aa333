"""Our files against those of llama.cpp's converter: equal tensor bytes, and metadata but for stated reasons."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmkit
from llmkit.formats.gguf import open_gguf
from tests.tinymodels import write_json

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# Keys that only our file has -> why that is right, and what the value must equal.
ONLY_OURS = {
    # config.json may leave head_dim to be computed; llama.cpp computes the same where the keys are missing.
    "llama.attention.key_length": "llama.rope.dimension_count",
    "llama.attention.value_length": "llama.rope.dimension_count",
    # llama.cpp's defaults for these depend on the pre-tokenizer's name; what the tokenizer does is stated instead.
    "tokenizer.ggml.add_space_prefix": None,
    "tokenizer.ggml.add_bos_token": None,
}


@pytest.fixture(scope="session")
def converter() -> Path:
    script = str(SCRIPTS / "llama_cpp_source.py")
    done = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip()) / "convert_hf_to_gguf.py"


def convert_with_peer(converter: Path, folder: Path, type: str, output: Path) -> None:
    subprocess.run(
        [sys.executable, str(converter), str(folder), "--outtype", type, "--outfile", str(output)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def assert_same(ours: Path, theirs: Path) -> None:
    with open_gguf(ours) as a, open_gguf(theirs) as b:
        assert set(a.tensors) == set(b.tensors)
        for name, tensor in a.tensors.items():
            assert (tensor.dtype, tensor.shape) == (b.tensors[name].dtype, b.tensors[name].shape)
            assert np.array_equal(a.raw(name), b.raw(name)), name
        assert not set(b.metadata) - set(a.metadata)
        for key in set(a.metadata) - set(b.metadata):
            assert key in ONLY_OURS
            assert ONLY_OURS[key] is None or a.get(key) == a.get(ONLY_OURS[key])
        for key in b.metadata:
            x, y = a.metadata[key], b.metadata[key]
            assert (x.type, x.element_type) == (y.type, y.element_type), key
            assert np.array_equal(np.asarray(x.data), np.asarray(y.data)), key


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0"])
def test_smollm2(type: str, smollm2_checkpoint: Path, converter: Path, tmp_path: Path) -> None:
    llmkit.convert(smollm2_checkpoint, f"gguf-{type}", output=tmp_path / "ours.gguf")
    convert_with_peer(converter, smollm2_checkpoint, type, tmp_path / "theirs.gguf")
    assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    for path in tmp_path.iterdir():
        path.unlink()


# Changes to the config of a tiny model whose tokenizer the peer knows.
CONFIGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "llama3 scaling": {
        "rope_parameters": {
            "rope_theta": 500000.0,
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "llama3 scaling, older config": {
        "rope_parameters": None,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "linear scaling": {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn scaling": {
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
        }
    },
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 1024},
    "head_dim left out": {"head_dim": None},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_tiny_models(case: str, tiny_checkpoint: Path, converter: Path, tmp_path: Path) -> None:
    folder = tmp_path / tiny_checkpoint.name
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text()) | CONFIGS[case]
    write_json(folder / "config.json", {key: value for key, value in config.items() if value is not None})
    llmkit.convert(folder, "gguf-bf16", output=tmp_path / "ours.gguf")
    convert_with_peer(converter, folder, "bf16", tmp_path / "theirs.gguf")
    assert_same(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
