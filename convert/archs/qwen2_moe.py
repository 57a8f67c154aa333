"""Qwen 1.5 MoE and Qwen 2 57B-A14B: Qwen 2 with experts, and a shared one that has a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, when


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Qwen2MoeConfig."""
    config.require("norm_topk_prob", (False,), False)
    config.require("tie_word_embeddings", (False,), False)
    hparams = replace(
        decoder.read_decoder(config, n_kv_heads=16, n_context=32768),
        attention_bias=config.boolean("qkv_bias", True),
        experts=decoder.read_experts(config, n_experts=60, n_used=4, n_ff=1408, n_ff_shared=5632),
    )
    decoder.require_heads_of_model_width(config, hparams)
    decoder.require_experts_everywhere(config, hparams.n_layers)
    return hparams


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {
        **decoder.write_without_biases(h),
        "qkv_bias": h.attention_bias,
        **decoder.write_experts(h),
        "norm_topk_prob": False,
    }


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """llama.cpp attends to everything, also in the blocks that slide a window where the config turns that on."""
    if not config.boolean("use_sliding_window", False):
        return ()
    return decoder.unused_window(config.values.get("sliding_window", 4096), hparams)


TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(bias=when(lambda h: h.attention_bias)),
    *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.router(blocks.MLP + "gate"),
    *blocks.gated_experts(),
    *blocks.shared_experts(blocks.MLP + "shared_expert.", gate=blocks.MLP + "shared_expert_gate"),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    gguf_architecture="qwen2moe",
    read_hparams=read_hparams,
    write_config=write_config,
    wrote=blocks.has_experts,
    tensors=TENSORS,
    notes=notes,
)
