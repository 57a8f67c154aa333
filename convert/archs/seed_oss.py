"""Seed-OSS: Llama with biases of queries, keys and values, in the order of halves that transformers rotates."""

from __future__ import annotations

from dataclasses import replace

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, when


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' SeedOssConfig."""
    config.require_boolean("attention_out_bias", False)
    config.require_boolean("mlp_bias", False)
    found = decoder.read_decoder(
        config, n_context=524288, n_kv_heads=8, head_dim=128, rope=read_rope(config).without_factors()
    )
    return replace(found, attention_bias=config.boolean("attention_bias", True))


FAMILY = Family(
    model_type="seed_oss",
    architectures=("SeedOssForCausalLM",),
    gguf_architecture="seed_oss",
    read_hparams=read_hparams,
    write_config=decoder.write_decoder,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *blocks.attention(bias=when(lambda h: h.attention_bias)),
        # llama.cpp's name for it; it normalises what the MLP takes, as in Llama.
        *blocks.norm("post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        *blocks.gated_mlp(),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
)
