"""Granite 4 without Mamba blocks and experts: Granite 3 whose MLP is where later models have the shared expert."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from llmkit.convert.archs import blocks, granite, granitemoe
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, Source, tensor
from llmkit.formats.gguf import boolean

_ATTENTION: Final = ("attention", "full_attention")  # the names of transformers 4 and 5


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GraniteMoeHybridConfig."""
    kinds = config.values.get("layer_types")
    if not isinstance(kinds, list) or any(kind not in _ATTENTION for kind in kinds):
        raise config.unsupported("layer_types", kinds, "llmkit converts models that are attention throughout")
    n_experts = config.values.get("num_local_experts", 8)
    if n_experts != 0:
        raise config.unsupported("num_local_experts", n_experts, "llmkit converts models without experts")
    found = replace(granite.read_hparams(config), n_ff=config.integer("shared_intermediate_size", 1024))
    rotates = config.values.get("position_embedding_type") == "rope"
    # llama.cpp's graph takes this key for the switch of the rotary embedding.
    return replace(found, rope=found.rope if rotates else None, extra={"rope.scaling.finetuned": boolean(rotates)})


def _joined(place: int) -> Source:
    """Gate or up projection."""
    return Source(
        granitemoe.SHARED + "input_linear.weight",
        stored=lambda h: (2 * h.n_ff, h.n_embd),
        view=lambda h, stored: stored.split(0, 2, -1).at(0, place),
    )


FAMILY = Family(
    model_type="granitemoehybrid",
    architectures=("GraniteMoeHybridForCausalLM",),
    gguf_architecture="granite",
    read_hparams=read_hparams,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *granitemoe.ATTENTION,
        *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        tensor("ffn_gate.weight", lambda h: (h.n_ff, h.n_embd), _joined(0)),
        tensor("ffn_up.weight", lambda h: (h.n_ff, h.n_embd), _joined(1)),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, granitemoe.SHARED + "output_linear"),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
)
