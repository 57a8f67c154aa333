"""Granite MoE with a shared expert, which all tokens pass, beside the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, granitemoe
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, Source, tensor, when

SHARED = "model.layers.{i}.shared_mlp."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GraniteMoeSharedConfig."""
    found = granitemoe.read_hparams(config)
    if config.values.get("shared_intermediate_size") in (None, 0):
        return found
    experts = replace(blocks.experts_of(found), n_ff_shared=config.integer("shared_intermediate_size"))
    return replace(found, experts=experts)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**granitemoe.write_config(h), "shared_intermediate_size": n_shared(h)}


def n_shared(h: HParams) -> int:
    """Width of the shared expert, 0 if there is none."""
    return blocks.experts_of(h).n_ff_shared or 0


def joined(place: int, width: blocks.Size) -> Source:
    """Gate (0) or up (1) projection of a shared expert of `width`, which checkpoints have in one matrix."""
    return Source(
        SHARED + "input_linear.weight",
        stored=lambda h: (2 * width(h), h.n_embd),
        view=lambda h, stored: stored.split(0, 2, -1).at(0, place),
    )


def _shape(h: HParams) -> tuple[int, ...]:
    return (n_shared(h), h.n_embd)


_has_shared = when(lambda h: n_shared(h) > 0)

FAMILY = Family(
    model_type="granitemoeshared",
    architectures=("GraniteMoeSharedForCausalLM",),
    gguf_architecture="granitemoe",
    read_hparams=read_hparams,
    tensors=(
        *blocks.embedding(),
        *granitemoe.BLOCK,
        tensor("ffn_gate_shexp.weight", _shape, joined(0, n_shared), presence=_has_shared),
        tensor("ffn_up_shexp.weight", _shape, joined(1, n_shared), presence=_has_shared),
        *blocks.linear("ffn_down_shexp", blocks.embd, n_shared, SHARED + "output_linear", presence=_has_shared),
        *granitemoe.OUTPUT,
    ),
    write_config=write_config,
    wrote=blocks.has_experts,
)
