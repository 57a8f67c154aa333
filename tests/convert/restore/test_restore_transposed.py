"""The way back of matrices that checkpoints hold transposed, and of one that the file holds twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.convert.checkpoint import open_checkpoint
from llmkit.formats.gguf import open_gguf
from llmkit.formats.safetensors import read_header
from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from tests.tinymodels import N_VOCAB, write_json, write_safetensors, write_tokenizer

_N = 256  # width; the MLP's is 512


def write_gpt2(folder: Path, *, prefix: str) -> dict[str, NDArray[np.float32]]:
    """GPT-2 of one block; returns its weights by the names that the checkpoint has."""
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (N_VOCAB, _N), "wpe.weight": (64, _N)}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        shapes |= {f"{name}.weight": (_N,), f"{name}.bias": (_N,)}
    for name, rows, columns in (
        ("attn.c_attn", _N, 3 * _N),
        ("attn.c_proj", _N, _N),
        ("mlp.c_fc", _N, 2 * _N),
        ("mlp.c_proj", 2 * _N, _N),
    ):
        shapes |= {f"h.0.{name}.weight": (rows, columns), f"h.0.{name}.bias": (columns,)}
    weights = {prefix + name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", weights, "F32")
    sizes = {"n_embd": _N, "n_inner": 2 * _N, "n_head": 4, "n_layer": 1, "n_positions": 64, "vocab_size": N_VOCAB}
    write_json(folder / "config.json", {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **sizes})
    write_tokenizer(folder)
    return weights


def weights_of(folder: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    found: dict[str, NDArray[np.float32]] = load_file(folder / "model.safetensors")
    return found


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_transposed_matrices(prefix: str, tmp_path: Path) -> None:
    weights = write_gpt2(tmp_path / "model", prefix=prefix)
    gguf = llmkit.convert(tmp_path / "model", "gguf-f32", output=tmp_path / "m.gguf").path
    restored = weights_of(llmkit.convert(gguf, "safetensors", output=tmp_path / "back").path)
    # Under the names that transformers saves, whatever the checkpoint had.
    expected = {"transformer." + name.removeprefix(prefix): values for name, values in weights.items()}
    assert restored.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(restored[name], values), name


@pytest.mark.parametrize(("type", "memory"), [("q8_0", "1GB"), ("q4_k_m", "1GB"), ("q4_k_m", "1MB")])
def test_transposed_matrices_of_a_quantised_file(type: str, memory: str, tmp_path: Path) -> None:
    """Blocks go along the file's rows, which are the checkpoint's columns."""
    write_gpt2(tmp_path / "model", prefix="transformer.")
    gguf = llmkit.convert(tmp_path / "model", f"gguf-{type}", output=tmp_path / "m.gguf").path
    back = llmkit.convert(gguf, "safetensors-f32", output=tmp_path / "back", memory=memory, verify=True).path
    restored = weights_of(back)
    names = {"attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    with open_gguf(gguf) as file:
        for role, name in names.items():
            info = file.tensors[f"blk.0.{role}.weight"]
            kind = TensorType[info.dtype]
            assert kind not in (TensorType.F32, TensorType.F16)
            values = np.empty(info.shape, np.float32)
            scheme(kind).decode(file.raw(info.name).reshape(info.shape[0], -1), values)
            assert np.array_equal(restored[f"transformer.h.0.{name}.weight"], values.T), role


def write_nemotron(folder: Path, *, tied: bool) -> None:
    random = np.random.default_rng(1)
    block = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (N_VOCAB, _N)}
    for name in (f"{block}input_layernorm", f"{block}post_attention_layernorm", "model.norm"):
        shapes |= {f"{name}.weight": (_N,), f"{name}.bias": (_N,)}
    shapes |= {f"{block}self_attn.{name}_proj.weight": (_N, _N) for name in "qkvo"}
    shapes |= {f"{block}mlp.up_proj.weight": (2 * _N, _N), f"{block}mlp.down_proj.weight": (_N, 2 * _N)}
    weights = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    if not tied:
        # The same but for the last weight: an embedding is compared to its end.
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
        weights["lm_head.weight"][-1, -1] += 1
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", weights, "F32")
    values: dict[str, Any] = {"architectures": ["NemotronForCausalLM"], "model_type": "nemotron"}
    values |= {"hidden_size": _N, "intermediate_size": 2 * _N, "num_hidden_layers": 1, "num_attention_heads": 4}
    write_json(folder / "config.json", {**values, "vocab_size": N_VOCAB, "tie_word_embeddings": tied})
    write_tokenizer(folder)


@pytest.mark.parametrize(
    ("tied", "type", "expected"),
    # Quantised, the output matrix gets more bits than the embedding: what the file computes is not tied any more.
    [(True, "f32", True), (False, "f32", False), (True, "q8_0", True), (True, "q4_k_m", False)],
)
def test_an_output_matrix_that_is_the_embedding(tied: bool, type: str, expected: bool, tmp_path: Path) -> None:
    write_nemotron(tmp_path / "model", tied=tied)
    gguf = llmkit.convert(tmp_path / "model", f"gguf-{type}", output=tmp_path / "m.gguf").path
    back = llmkit.convert(gguf, "safetensors", output=tmp_path / "back").path
    assert json.loads((back / "config.json").read_text())["tie_word_embeddings"] is expected
    assert ("lm_head.weight" in read_header(back / "model.safetensors").tensors) is not expected
    again = llmkit.convert(back, "gguf-f32", output=tmp_path / "again.gguf").path
    with open_gguf(again) as file:
        same = np.array_equal(file.raw("output.weight"), file.raw("token_embd.weight"))
    assert same is expected
    assert open_checkpoint(back).n_params > 0
