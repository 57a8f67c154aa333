"""Nemotron 3 to 4 and Minitron: LayerNorm whose weights are stored less 1, an MLP of squared ReLU without a gate."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, when
from llmkit.convert.transforms import Map


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' NemotronConfig."""
    hparams = decoder.read_decoder(
        config,
        n_context=4096,
        layer_norm_eps="norm_eps",
        rope=read_rope(config, share=config.number("rope_percent", 0.5)).without_factors(),
        activation="relu2",
    )
    return decoder.require_heads_of_model_width(config, hparams)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {
        **decoder.write_decoder(h, layer_norm_eps="norm_eps", activation="relu2"),
        # Stated also where it is 1, which is not what a missing key means.
        "partial_rotary_factor": 1.0 if h.rope is None else h.rope.share,
    }


_has_attention_bias = when(lambda h: h.attention_bias)

TENSORS = (
    *blocks.embedding(),
    *blocks.layer_norm("attn_norm", "model.layers.{i}.input_layernorm", map=Map.ADD_ONE),
    *blocks.attention(bias=_has_attention_bias, output_bias=_has_attention_bias),
    *blocks.layer_norm("ffn_norm", "model.layers.{i}.post_attention_layernorm", map=Map.ADD_ONE),
    *blocks.mlp(blocks.MLP + "up_proj", blocks.MLP + "down_proj", bias=when(lambda h: h.mlp_bias)),
    *blocks.layer_norm("output_norm", "model.norm", map=Map.ADD_ONE),
    *blocks.output_matrix(),
)

FAMILY = Family(
    model_type="nemotron",
    architectures=("NemotronForCausalLM",),
    gguf_architecture="nemotron",
    read_hparams=read_hparams,
    tensors=TENSORS,
    write_config=write_config,
)
