"""Gemma 2: every second block attends to a window, norms also after attention and MLP, logits are capped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from llmkit.convert.archs import blocks, decoder, gemma
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure
from llmkit.errors import FormatError, UnsupportedError

GELU: Final = ("gelu_pytorch_tanh",)
# By its number of blocks llama.cpp knows the largest model, which scales queries otherwise.
_LAYERS_OF_27B: Final = 46


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Gemma2Config."""
    config.require("hidden_activation", GELU, GELU[0])
    gemma.require_tied(config)
    h = gemma.read_gemma(config, n_kv_heads=4, n_context=8192, rope=read_rope(config))
    require_scale(config, h, _LAYERS_OF_27B)
    sliding = sliding_layers(config, h.n_layers, every=2)
    return replace(
        h,
        attention_softcap=_cap(config, "attn_logit_softcapping", 50.0),
        final_softcap=_cap(config, "final_logit_softcapping", 30.0),
        sliding_window=config.integer("sliding_window", 4096),
        sliding_layers=None if sliding == decoder.all_but_every(2, h.n_layers) else sliding,
    )


def _cap(config: ConfigReader, key: str, default: float) -> float:
    if key in config.values and config.values[key] is None:
        raise UnsupportedError(f"{config.path}: {key} is null; llama.cpp caps these logits in every Gemma 2")
    return config.number(key, default)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; what a file leaves out has llama.cpp's default."""
    return {
        **gemma.write_config(h),
        "query_pre_attn_scalar": computed_scalar(h, _LAYERS_OF_27B),
        "attn_logit_softcapping": h.attention_softcap or 50.0,
        "final_logit_softcapping": h.final_softcap or 30.0,
        "sliding_window": h.sliding_window or 4096,
        **decoder.write_sliding_layers(h.sliding_layers or decoder.all_but_every(2, h.n_layers)),
    }


def computed_scalar(h: HParams, layers_of_27b: int) -> int:
    """By the root of what llama.cpp divides the queries."""
    return h.n_embd // h.n_heads if h.n_layers == layers_of_27b else h.head_dim


def require_scale(config: ConfigReader, h: HParams, layers_of_27b: int) -> None:
    """Refuse a scale of the queries that is not the one that llama.cpp computes with."""
    scalar = config.number("query_pre_attn_scalar", 256.0)
    computed = computed_scalar(h, layers_of_27b)
    if scalar != computed:
        raise UnsupportedError(
            f"{config.path}: query_pre_attn_scalar {scalar:g}; llama.cpp computes this model with {computed}"
        )


def structure(layers_of_27b: int, slides: Callable[[HParams, int], bool]) -> Structure:
    """What Gemma 2 and 3 compute, the one whose largest model has so many blocks."""
    return Structure(
        norm_after_attention="post_attention_norm",
        norm_after_mlp="post_ffw_norm",
        activation="gelu_tanh",
        embedding_scale=gemma.embedding_scale,
        attention_scale=lambda h: 1 / math.sqrt(computed_scalar(h, layers_of_27b)),
        slides=slides,
    )


def sliding_layers(config: ConfigReader, n_layers: int, every: int) -> tuple[bool, ...]:
    """Which blocks attend to a window: by `layer_types`, else all but every `every`-th."""
    kinds = config.values.get("layer_types")
    if kinds is None:
        return decoder.all_but_every(every, n_layers)
    layers = decoder.named_layers(kinds, n_layers)
    if layers is None:
        raise FormatError(
            config.path,
            f"layer_types must have {n_layers} entries (num_hidden_layers) of {decoder.SLIDING} and {decoder.FULL}, "
            f"found {excerpt(kinds)}",
        )
    return layers


FAMILY = Family(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    gguf_architecture="gemma2",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *gemma.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *blocks.attention(),
        *gemma.norm("post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        *gemma.norm("ffn_norm", "model.layers.{i}.pre_feedforward_layernorm"),
        *blocks.gated_mlp(),
        *gemma.norm("post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
        *gemma.norm("output_norm", "model.norm"),
    ),
    unused=gemma.FAMILY.unused,
    structure=structure(_LAYERS_OF_27B, slides=lambda h, i: i % 2 == 0),
)
