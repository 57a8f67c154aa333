"""GLM-4 of 2024 as transformers has it: half of each head rotated, gate and up projections in one matrix."""

from __future__ import annotations

from dataclasses import replace

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family, when


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GlmConfig."""
    return decoder.require_heads_of_model_width(config, read_any_width(config))


def read_any_width(config: ConfigReader) -> HParams:
    """Hyper-parameters that GLM-4 of 2024 and of 2025 share, down to the defaults."""
    found = decoder.read_decoder(
        config,
        n_context=131072,
        n_kv_heads=2,
        head_dim=128,
        rms_eps=1.5625e-7,
        rope=read_rope(config, share=0.5).without_factors(),
    )
    return replace(found, attention_bias=config.boolean("attention_bias", True))


_has_attention_bias = when(lambda h: h.attention_bias)

MLP = (
    # llama.cpp takes the two as they are, one above the other.
    *blocks.linear("ffn_up", lambda h: 2 * h.n_ff, blocks.embd, blocks.MLP + "gate_up_proj"),
    *blocks.linear("ffn_down", blocks.embd, blocks.ff, blocks.MLP + "down_proj"),
)

FAMILY = Family(
    model_type="glm",
    architectures=("GlmForCausalLM",),
    gguf_architecture="chatglm",
    read_hparams=read_hparams,
    write_config=decoder.write_decoder,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *blocks.attention(bias=_has_attention_bias),
        *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        *MLP,
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
)
