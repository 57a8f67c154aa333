"""Gemma 3: Gemma 2 with normalised queries and keys, five windowed blocks to one, and their own rotary base.

The larger models also see images; their text part is converted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from llmkit.convert.archs import blocks, decoder, gemma, gemma2
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import Rope, read_rope
from llmkit.convert.archs.rules import Family
from llmkit.errors import FormatError, UnsupportedError

# What the published multimodal models leave to transformers' Gemma3TextConfig.
_DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "sliding_window_pattern": 6,
}
_LAYERS_OF_27B: Final = 62
_LOCAL_THETA: Final = 10_000.0


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Gemma3TextConfig."""
    config = config.filled(_DEFAULTS)
    config.require("hidden_activation", gemma2.GELU, gemma2.GELU[0])
    if "attn_logit_softcapping" in config:
        raise UnsupportedError(f"{config.path}: attn_logit_softcapping; llama.cpp caps no attention in Gemma 3")
    rope = read_rope(config, theta=1_000_000.0, layers="full_attention")
    h = gemma.read_gemma(config, n_kv_heads=4, n_context=131_072, rope=rope)
    gemma2.require_scale(config, h, _LAYERS_OF_27B)
    if "final_logit_softcapping" in config:
        h = replace(h, final_softcap=config.number("final_logit_softcapping"))
    every = config.integer("sliding_window_pattern")
    sliding = gemma2.sliding_layers(config, h.n_layers, every)
    if not any(sliding):
        return h
    if config.values.get("sliding_window", 0) is None:
        raise FormatError(config.path, "sliding_window is null, but there are layers of sliding_attention")
    return replace(
        h,
        sliding_window=config.integer("sliding_window", 4096),
        sliding_layers=None if sliding == decoder.all_but_every(6, h.n_layers) else sliding,
        sliding_rope=_sliding_rope(config),
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards, for a model of text alone."""
    sliding = (False,) * h.n_layers
    if h.sliding_window:
        sliding = h.sliding_layers or decoder.all_but_every(6, h.n_layers)
    return {
        "model_type": "gemma3_text",
        **gemma.write_config(h),
        "rope_local_base_freq": _LOCAL_THETA if h.sliding_rope is None else h.sliding_rope.theta,
        "query_pre_attn_scalar": gemma2.computed_scalar(h, _LAYERS_OF_27B),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": h.final_softcap,
        "sliding_window": h.sliding_window or 4096,
        **decoder.write_sliding_layers(sliding),
    }


def _sliding_rope(config: ConfigReader) -> Rope:
    """The rotary embedding of the windowed blocks, which rope_scaling is not about."""
    kind = "sliding_attention"
    if isinstance(config.object("rope_parameters").get(kind), dict):
        return read_rope(config, theta=_LOCAL_THETA, layers=kind)
    return Rope(config.path, config.number("rope_local_base_freq", _LOCAL_THETA), "default", {})


def _head_dim(h: HParams) -> int:
    return h.head_dim


FAMILY = Family(
    model_type="gemma3",
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    gguf_architecture="gemma3",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *gemma.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *blocks.attention(),
        *gemma.norm("attn_q_norm", blocks.ATTENTION + "q_norm", _head_dim),
        *gemma.norm("attn_k_norm", blocks.ATTENTION + "k_norm", _head_dim),
        *gemma.norm("post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
        *gemma.norm("ffn_norm", "model.layers.{i}.pre_feedforward_layernorm"),
        *blocks.gated_mlp(),
        *gemma.norm("post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm"),
        *gemma.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
    # As transformers 4 and 5 save the text part of a multimodal model.
    prefixes=(
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
    ),
    text_config="text_config",
    other_parts=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    structure=gemma2.structure(_LAYERS_OF_27B, slides=lambda h, i: (i + 1) % 6 != 0),
)
