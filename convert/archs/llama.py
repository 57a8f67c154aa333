"""Llama 1 to 3.x, and what shares its architecture: TinyLlama, SmolLM, SmolLM2, Vicuna, Yi, ..."""

from __future__ import annotations

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, when
from llmkit.convert.archs.structure import Structure


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' LlamaConfig."""
    return decoder.read_decoder(config, n_context=2048)


_has_attention_bias = when(lambda h: h.attention_bias)

TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(view=blocks.interleaved_heads, bias=_has_attention_bias, output_bias=_has_attention_bias),
    *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.gated_mlp(bias=when(lambda h: h.mlp_bias)),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    gguf_architecture="llama",
    read_hparams=read_hparams,
    tensors=TENSORS,
    structure=Structure(),
    # Older checkpoints store the rotary frequencies, which follow from rope_theta.
    write_config=decoder.write_decoder,
    unused=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
)
