"""OLMo 1: Llama whose normalisations have no weights, and whose queries, keys and values may be clipped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family
from llmkit.formats.gguf import f32


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' OlmoConfig."""
    config.require_boolean("attention_bias", False)
    found = decoder.read_decoder(config, n_context=2048, rope=read_rope(config).without_factors())
    # The epsilon is not configured: transformers' OlmoLayerNorm has it as a constant.
    found = replace(found, rms_eps=None, norm_eps=1e-5)
    if "clip_qkv" in config:
        found = replace(found, extra={"attention.clamp_kqv": f32(config.number("clip_qkv"))})
    return decoder.require_heads_of_model_width(config, found)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    clipped = h.extra.get("attention.clamp_kqv")
    found = {**decoder.write_decoder(h), "clip_qkv": None if clipped is None else clipped.data}
    del found["rms_norm_eps"]
    return found


FAMILY = Family(
    model_type="olmo",
    architectures=("OlmoForCausalLM",),
    gguf_architecture="olmo",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *blocks.attention(view=blocks.interleaved_heads),
        *blocks.gated_mlp(),
        *blocks.head(),
    ),
)
