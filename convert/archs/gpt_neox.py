"""GPT-NeoX: Pythia, Dolly, RedPajama, StableLM Alpha, ..."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder, gelu
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, required

_BLOCK = "gpt_neox.layers.{i}."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GPTNeoXConfig."""
    config.require_boolean("attention_bias", True)
    # Before transformers 5 the rotary settings had names of their own.
    theta, share = config.number("rotary_emb_base", 10000.0), config.number("rotary_pct", 0.25)
    hparams = decoder.read_decoder(
        config,
        n_context=2048,
        layer_norm_eps="layer_norm_eps",
        rope=read_rope(config, theta=theta, share=share).without_factors(),
        activation="gelu",
    )
    hparams = decoder.require_heads_of_model_width(config, hparams)
    return replace(hparams, parallel_residual=config.boolean("use_parallel_residual", True))


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; files do not say which GELU it is."""
    assert h.rope is not None
    found = {
        **decoder.write_decoder(h, layer_norm_eps="layer_norm_eps", activation="gelu"),
        "attention_bias": True,
        "rotary_emb_base": h.rope.theta,
        "rotary_pct": h.rope.share,
        "use_parallel_residual": h.parallel_residual is not False,
    }
    # These have the names above, in every version of transformers.
    return {key: value for key, value in found.items() if key not in ("rope_theta", "partial_rotary_factor")}


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """How llama.cpp's GELU differs."""
    return gelu.notes(config, "hidden_act", "gelu")


TENSORS = (
    *blocks.embedding("gpt_neox.embed_in"),
    *blocks.layer_norm("attn_norm", _BLOCK + "input_layernorm"),
    *blocks.fused_attention(
        _BLOCK + "attention.query_key_value", _BLOCK + "attention.dense", view=blocks.three_per_head, bias=required
    ),
    *blocks.layer_norm("ffn_norm", _BLOCK + "post_attention_layernorm"),
    *blocks.mlp(_BLOCK + "mlp.dense_h_to_4h", _BLOCK + "mlp.dense_4h_to_h", bias=required),
    *blocks.layer_norm("output_norm", "gpt_neox.final_layer_norm"),
    *blocks.output_matrix("embed_out", "gpt_neox.embed_in"),
)

FAMILY = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    gguf_architecture="gptneox",
    read_hparams=read_hparams,
    tensors=TENSORS,
    # The causal mask, what it masks with, and the rotary frequencies, which older checkpoints store.
    unused=(r"gpt_neox\.layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",),
    notes=notes,
    write_config=write_config,
)
