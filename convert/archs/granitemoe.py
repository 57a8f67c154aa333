"""Granite MoE: Granite 3 with a mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, granite
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import Experts, HParams
from llmkit.convert.archs.rules import Family, Source, tensor, when

MOE = "model.layers.{i}.block_sparse_moe."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GraniteMoeConfig."""
    found = granite.read_hparams(config)
    n_experts = config.integer("num_local_experts", 8)
    experts = Experts(
        n_experts=n_experts,
        n_used=config.integer("num_experts_per_tok", 2, maximum=n_experts),
        n_ff=found.n_ff,
    )
    return replace(found, experts=experts)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    experts = blocks.experts_of(h)
    return {
        **granite.write_config(h),
        "num_local_experts": experts.n_experts,
        "num_experts_per_tok": experts.n_used,
    }


def _up(h: HParams) -> tuple[int, ...]:
    return (blocks.experts_of(h).n_experts, h.n_ff, h.n_embd)


def _down(h: HParams) -> tuple[int, ...]:
    return (blocks.experts_of(h).n_experts, h.n_embd, h.n_ff)


def _joined(place: int) -> tuple[Source, ...]:
    """Gate or up projections of all experts, under the published name and under that of transformers 5."""
    return tuple(
        Source(
            name,
            stored=lambda h: (blocks.experts_of(h).n_experts, 2 * h.n_ff, h.n_embd),
            view=lambda h, stored: stored.split(1, 2, -1).at(1, place),
        )
        for name in (MOE + "input_linear.weight", MOE + "experts.gate_up_proj")
    )


_has_attention_bias = when(lambda h: h.attention_bias)

ATTENTION = blocks.attention(view=blocks.interleaved_heads, bias=_has_attention_bias, output_bias=_has_attention_bias)
EXPERTS = (
    *blocks.linear(
        "ffn_gate_inp", lambda h: blocks.experts_of(h).n_experts, blocks.embd, MOE + "router.layer", MOE + "router"
    ),
    tensor("ffn_gate_exps.weight", _up, *_joined(0)),
    tensor("ffn_up_exps.weight", _up, *_joined(1)),
    tensor("ffn_down_exps.weight", _down, MOE + "output_linear.weight", MOE + "experts.down_proj"),
)

BLOCK = (
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *ATTENTION,
    *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *EXPERTS,
)
OUTPUT = (*blocks.norm("output_norm", "model.norm"), *blocks.head())

FAMILY = Family(
    model_type="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    gguf_architecture="granitemoe",
    read_hparams=read_hparams,
    tensors=(*blocks.embedding(), *BLOCK, *OUTPUT),
    write_config=write_config,
    wrote=lambda h: h.experts is not None and h.experts.n_ff_shared is None,
)
