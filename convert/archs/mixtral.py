"""Mixtral: Mistral with experts in place of the MLP; llama.cpp's `llama` graph computes those too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure

# As published; transformers 5 has the router, and all experts in one, under the names of other mixtures.
MIXTURE = "model.layers.{i}.block_sparse_moe."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' MixtralConfig."""
    return replace(
        decoder.read_decoder(
            config, n_kv_heads=8, n_context=131072, rms_eps=1e-5, rope=read_rope(config, theta=1000000.0)
        ),
        experts=decoder.read_experts(config, n_experts=8, n_used=2),
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    experts = blocks.experts_of(h)
    return {
        **decoder.write_without_biases(h),
        "num_local_experts": experts.n_experts,
        "num_experts_per_tok": experts.n_used,
        "sliding_window": None,
    }


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """llama.cpp attends to everything, which differs beyond the window only."""
    return decoder.unused_window(config.values.get("sliding_window"), hparams)


TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(view=blocks.interleaved_heads),
    *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.router(MIXTURE + "gate", blocks.MLP + "gate"),
    *blocks.gated_experts(MIXTURE, gate="w1", up="w3", down="w2"),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    gguf_architecture="llama",
    read_hparams=read_hparams,
    write_config=write_config,
    wrote=blocks.has_experts,
    tensors=TENSORS,
    notes=notes,
    structure=Structure(complete=decoder.with_window),
)
