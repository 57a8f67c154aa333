"""Arcee (AFM): Llama whose MLP has no gate and squares what a ReLU lets through."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' ArceeConfig."""
    config.require_boolean("attention_bias", False)
    config.require_boolean("mlp_bias", False)
    return decoder.read_decoder(config, n_context=4096, rms_eps=1e-5, activation="relu2")


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**decoder.write_decoder(h), "hidden_act": "relu2"}


FAMILY = Family(
    model_type="arcee",
    architectures=("ArceeForCausalLM",),
    gguf_architecture="arcee",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *blocks.attention(view=blocks.interleaved_heads),
        *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        *blocks.linear("ffn_up", blocks.ff, blocks.embd, blocks.MLP + "up_proj"),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, blocks.MLP + "down_proj"),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
)
