"""StarCoder2: LayerNorm, biases everywhere, an MLP without a gate."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, decoder, gelu
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, required


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Starcoder2Config."""
    config.require_boolean("use_bias", True)
    hparams = decoder.read_decoder(
        config,
        n_context=4096,
        n_kv_heads=2,
        layer_norm_eps="norm_epsilon",
        rope=read_rope(config).without_factors(),
        activation="gelu_pytorch_tanh",
        tied=True,
    )
    return decoder.require_heads_of_model_width(config, hparams)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; files do not say which GELU it is."""
    return {
        **decoder.write_decoder(h, layer_norm_eps="norm_epsilon", activation="gelu_pytorch_tanh"),
        "use_bias": True,
        "sliding_window": None,
    }


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """What llama.cpp computes otherwise: the sliding window, and GELU."""
    return (
        *decoder.unused_window(config.values.get("sliding_window"), hparams),
        *gelu.notes(config, "hidden_act", "gelu_pytorch_tanh"),
    )


TENSORS = (
    *blocks.embedding(),
    *blocks.layer_norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(bias=required, output_bias=required),
    *blocks.layer_norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.mlp(blocks.MLP + "c_fc", blocks.MLP + "c_proj", bias=required),
    *blocks.layer_norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    gguf_architecture="starcoder2",
    read_hparams=read_hparams,
    tensors=TENSORS,
    notes=notes,
    write_config=write_config,
)
