"""GPT-OSS's experts in MXFP4: kept bit for bit in every recipe, or decoded where a user says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import llmkit
from llmkit.convert.checkpoint import open_checkpoint
from llmkit.convert.gguf_target import plan_gguf
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.gguf import open_gguf
from llmkit.quantize.recipes import find_recipe
from llmkit.quantize.schemes.mxfp4 import decode_oracle
from tests.tinymodels import N_VOCAB, write_tokenizer

EMBD, FF, HEADS, KV_HEADS, HEAD, EXPERTS = 64, 32, 4, 2, 16, 3
CONFIG: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": EMBD,
    "intermediate_size": FF,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "vocab_size": N_VOCAB,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    def octets(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)

    found = {
        "model.embed_tokens.weight": normal(N_VOCAB, EMBD),
        "model.norm.weight": normal(EMBD),
        "lm_head.weight": normal(N_VOCAB, EMBD),
    }
    for i in range(2):
        attention, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        for name, rows in (("q_proj", HEADS * HEAD), ("k_proj", KV_HEADS * HEAD), ("v_proj", KV_HEADS * HEAD)):
            found |= {f"{attention}{name}.weight": normal(rows, EMBD), f"{attention}{name}.bias": normal(rows)}
        found |= {
            f"{attention}o_proj.weight": normal(EMBD, HEADS * HEAD),
            f"{attention}o_proj.bias": normal(EMBD),
            f"{attention}sinks": normal(HEADS),
            f"model.layers.{i}.input_layernorm.weight": normal(EMBD),
            f"model.layers.{i}.post_attention_layernorm.weight": normal(EMBD),
            f"{mlp}router.weight": normal(EXPERTS, EMBD),
            f"{mlp}router.bias": normal(EXPERTS),
            f"{mlp}experts.gate_up_proj_blocks": octets(EXPERTS, 2 * FF, EMBD // 32, 16),
            f"{mlp}experts.gate_up_proj_scales": octets(EXPERTS, 2 * FF, EMBD // 32, low=115, high=125),
            f"{mlp}experts.gate_up_proj_bias": normal(EXPERTS, 2 * FF),
            f"{mlp}experts.down_proj_blocks": octets(EXPERTS, EMBD, FF // 32, 16),
            f"{mlp}experts.down_proj_scales": octets(EXPERTS, EMBD, FF // 32, low=115, high=125),
            f"{mlp}experts.down_proj_bias": normal(EXPERTS, EMBD),
        }
    return found


def write(folder: Path, config: dict[str, Any] = CONFIG, **changes: torch.Tensor) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    save_file(tensors() | changes, folder / "model.safetensors")
    return folder


def theirs(name: str) -> NDArray[np.float32]:
    """What transformers makes of stored experts, [experts, rows, columns]."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored = tensors()
    found = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"], dtype=torch.float32)
    return np.ascontiguousarray(found.transpose(1, 2).numpy())


@pytest.mark.parametrize("recipe", ["f32", "f16", "bf16", "q8_0", "q4_k_m", "mxfp4_moe"])
def test_every_recipe_keeps_their_bits(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    plan = llmkit.convert(write(tmp_path / "m"), f"gguf-{recipe}", output=path, verify=True).plan
    assert any("6 tensors are MXFP4 in the checkpoint and are kept so" in note for note in plan.notes)
    assert any("truncate false" in note for note in plan.notes)
    experts = "model.layers.1.mlp.experts."
    with open_gguf(path) as file:
        # The peer, too, calls plain files with such experts MXFP4.
        assert file.get("general.file_type") == (
            38 if recipe in ("f32", "f16", "bf16") else find_recipe(recipe).file_type
        )
        for role, name, rows in (
            ("gate", "gate_up_proj", slice(0, None, 2)),
            ("up", "gate_up_proj", slice(1, None, 2)),
            ("down", "down_proj", slice(None)),
        ):
            info = file.tensors[f"blk.1.ffn_{role}_exps.weight"]
            assert info.dtype == "MXFP4"
            packed = np.array(file.raw(info.name)).view(np.uint8).reshape(-1, info.shape[-1] // 32 * 17)
            expected = theirs(experts + name)[:, rows]
            np.testing.assert_array_equal(decode_oracle(packed), expected.reshape(-1, expected.shape[-1]))
            bias = tensors()[f"{experts}{name}_bias"].float().numpy()[:, rows]
            found = file.raw(f"blk.1.ffn_{role}_exps.bias").view(np.float32)
            np.testing.assert_array_equal(found.reshape(bias.shape), bias)


def test_a_pattern_gives_them_another_type(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    folder = write(tmp_path / "m")
    llmkit.convert(folder, "gguf-q8_0", output=path, tensor_types=["ffn_down_exps=f32"], verify=True)
    with open_gguf(path) as file:
        assert file.tensors["blk.0.ffn_gate_exps.weight"].dtype == "MXFP4"
        found = file.raw("blk.0.ffn_down_exps.weight").view(np.float32)
        np.testing.assert_array_equal(found, theirs("model.layers.0.mlp.experts.down_proj").ravel())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"swiglu_limit": 10.0}, UnsupportedError, "swiglu_limit 10.0; llama.cpp computes 7.0"),
        ({"attention_bias": False}, UnsupportedError, "attention_bias false"),
        ({"layer_types": ["full_attention"]}, UnsupportedError, "expected 2 of full_attention and sliding_attention"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act is 'gelu'"),
        ({"intermediate_size": 64}, FormatError, r"shape \[3, 64, 64\] contradicts config.json"),
        ({"quantization_config": None}, LlmkitError, "has dtype U8|shape .* contradicts config.json"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], error: type[LlmkitError], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", CONFIG | changes)
    with pytest.raises(error, match=message):
        plan_gguf(open_checkpoint(folder), find_recipe("f16"))


def test_blocks_without_their_scales(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj_scales"
    folder = write(tmp_path / "m", **{name: torch.zeros(EXPERTS, EMBD, 2, dtype=torch.uint8)})
    with pytest.raises(FormatError, match=r"down_proj_scales': shape \[3, 64, 2\] does not fit"):
        plan_gguf(open_checkpoint(folder), find_recipe("f16"))


@pytest.mark.parametrize("swapped", [False, True])
def test_windows_in_other_layers_are_written(swapped: bool, tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    folder = write(tmp_path / "m", CONFIG | {"layer_types": kinds[::-1] if swapped else kinds})
    path = llmkit.convert(folder, "gguf-f16", output=tmp_path / "x.gguf").path
    with open_gguf(path) as file:
        assert file.get("gpt-oss.attention.sliding_window") == 128
        found = file.metadata.get("gpt-oss.attention.sliding_window_pattern")
        assert (found is not None) == swapped
        if found is not None:
            assert list(found.data) == [False, True]  # type: ignore[call-overload]
