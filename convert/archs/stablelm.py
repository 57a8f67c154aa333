"""StableLM 2 and 3B, Stable Code, Zephyr: Llama with LayerNorm and heads that are rotated in part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder, llama
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, tensor, when


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' StableLmConfig.

    The models' first own code had names of its own.
    """
    hparams = decoder.read_decoder(
        config,
        n_context=4096,
        n_kv_heads=32,
        layer_norm_eps="layer_norm_eps" if "layer_norm_eps" in config else "norm_eps",
        rope=read_rope(config, share=config.number("rope_pct", 0.25)).without_factors(),
    )
    return replace(
        decoder.require_heads_of_model_width(config, hparams),
        attention_bias=config.boolean("use_qkv_bias", False),
        qk_norm=config.boolean("qk_layernorm", False),
        parallel_residual=config.boolean("use_parallel_residual", False),
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {
        **decoder.write_decoder(h, layer_norm_eps="layer_norm_eps"),
        # Stated also where it is 1, which is not what a missing key means.
        "partial_rotary_factor": 1.0 if h.rope is None else h.rope.share,
        "use_qkv_bias": h.attention_bias,
        "qk_layernorm": h.qk_norm,
        "use_parallel_residual": h.parallel_residual is True,
    }


def _head_norm(role: str, name: str, n_heads: blocks.Size) -> blocks.Rules:
    """LayerNorms without bias, one for each head: [heads, head_dim]."""
    return (
        tensor(
            f"{role}.weight",
            lambda h: (n_heads(h), h.head_dim),
            f"{blocks.ATTENTION}{name}.norms.{{e}}.weight",
            presence=when(lambda h: h.qk_norm),
        ),
    )


# The graph adds attention and MLP side by side where the MLP has no norm of its own.
_one_after_the_other = when(lambda h: not h.parallel_residual)

TENSORS = (
    *blocks.embedding(),
    *blocks.layer_norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(bias=when(lambda h: h.attention_bias)),
    *_head_norm("attn_q_norm", "q_layernorm", lambda h: h.n_heads),
    *_head_norm("attn_k_norm", "k_layernorm", lambda h: h.n_kv_heads),
    *blocks.norm(
        "ffn_norm",
        "model.layers.{i}.post_attention_layernorm",
        presence=_one_after_the_other,
        bias=_one_after_the_other,
    ),
    *blocks.gated_mlp(),
    *blocks.layer_norm("output_norm", "model.norm"),
    *blocks.output_matrix(),
)

FAMILY = Family(
    model_type="stablelm",
    architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    gguf_architecture="stablelm",
    read_hparams=read_hparams,
    tensors=TENSORS,
    unused=llama.FAMILY.unused,
    write_config=write_config,
)
