"""Granite 4 without Mamba blocks and experts: Granite 3 whose MLP is where later models have the shared expert."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from llmkit.convert.archs import blocks, granite, granitemoe, granitemoeshared
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, tensor
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


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {
        **granite.write_config(h),
        "layer_types": ["attention"] * h.n_layers,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": h.n_ff,
        "position_embedding_type": "rope" if h.rope is not None else None,
    }


FAMILY = Family(
    model_type="granitemoehybrid",
    architectures=("GraniteMoeHybridForCausalLM",),
    gguf_architecture="granite",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *granitemoe.ATTENTION,
        *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        tensor("ffn_gate.weight", lambda h: (h.n_ff, h.n_embd), granitemoeshared.joined(0, blocks.ff)),
        tensor("ffn_up.weight", lambda h: (h.n_ff, h.n_embd), granitemoeshared.joined(1, blocks.ff)),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, granitemoeshared.SHARED + "output_linear"),
        *granitemoe.OUTPUT,
    ),
)
