"""Qwen 3 30B-A3B, 235B-A22B, Coder: Qwen 3 with experts in place of the MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder, qwen2_moe
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Qwen3MoeConfig."""
    config.require("norm_topk_prob", (True,), False)
    config.require("attention_bias", (False,), False)  # the graph has none on the output projection
    hparams = replace(
        decoder.read_decoder(config, n_kv_heads=4, n_context=32768),
        experts=decoder.read_experts(config, n_experts=128, n_used=8, n_ff=768),
    )
    decoder.require_experts_everywhere(config, hparams.n_layers)
    return hparams


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**decoder.write_decoder(h), **decoder.write_experts(h), "norm_topk_prob": True}


TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(),
    *blocks.head_norms(),
    *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.router(blocks.MLP + "gate"),
    *blocks.gated_experts(),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    gguf_architecture="qwen3moe",
    read_hparams=read_hparams,
    write_config=write_config,
    wrote=blocks.has_experts,
    tensors=TENSORS,
    notes=qwen2_moe.notes,
    structure=Structure(complete=decoder.with_windows_of_some),
)
