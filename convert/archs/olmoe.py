"""OLMoE: experts in every block, and a normalisation of all heads' queries together and of their keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' OlmoeConfig."""
    config.require("norm_topk_prob", (False,), False)
    config.require("tie_word_embeddings", (False,), False)
    config.require("attention_bias", (False,), False)
    config.require("clip_qkv", (None,), None)
    hparams = replace(
        decoder.read_decoder(config, n_context=4096, rms_eps=1e-5),
        experts=decoder.read_experts(config, n_experts=64, n_used=8),
    )
    decoder.require_heads_of_model_width(config, hparams)
    # The graph's normalisation of the keys is as wide as that of the queries.
    config.require("num_key_value_heads", (hparams.n_heads,), hparams.n_heads)
    return hparams


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**decoder.write_decoder(h), **decoder.write_experts(h), "norm_topk_prob": False}


TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(),
    *blocks.norm("attn_q_norm", blocks.ATTENTION + "q_norm"),
    *blocks.norm("attn_k_norm", blocks.ATTENTION + "k_norm"),
    *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.router(blocks.MLP + "gate"),
    *blocks.gated_experts(),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="olmoe",
    architectures=("OlmoeForCausalLM",),
    gguf_architecture="olmoe",
    read_hparams=read_hparams,
    write_config=write_config,
    wrote=blocks.has_experts,
    tensors=TENSORS,
)
