"""Qwen 3: Qwen 2 without biases, with a normalisation of each head's query and key."""

from __future__ import annotations

from llmkit.convert.archs import blocks, decoder, qwen2
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Qwen3Config."""
    config.require("attention_bias", (False,), False)  # the graph has none on the output projection
    return decoder.read_decoder(config, n_kv_heads=32, head_dim=128, n_context=32768)


TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(),
    *blocks.head_norms(),
    *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.gated_mlp(),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    gguf_architecture="qwen3",
    read_hparams=read_hparams,
    write_config=decoder.write_decoder,
    tensors=TENSORS,
    notes=qwen2.notes,
    structure=Structure(complete=decoder.with_windows_of_some),
)
