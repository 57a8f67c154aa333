"""GLM-4 of 2025 (0414): that of 2024 with normalisations of what attention and MLP put out."""

from __future__ import annotations

from llmkit.convert.archs import blocks, decoder, glm
from llmkit.convert.archs.rules import Family, when

LAYER = "model.layers.{i}."

FAMILY = Family(
    model_type="glm4",
    architectures=("Glm4ForCausalLM",),
    gguf_architecture="glm4",
    read_hparams=glm.read_any_width,
    write_config=decoder.write_decoder,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", LAYER + "input_layernorm"),
        *blocks.attention(bias=when(lambda h: h.attention_bias)),
        *blocks.norm("post_attention_norm", LAYER + "post_self_attn_layernorm"),
        *blocks.norm("ffn_norm", LAYER + "post_attention_layernorm"),
        *glm.MLP,
        *blocks.norm("post_ffw_norm", LAYER + "post_mlp_layernorm"),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
)
