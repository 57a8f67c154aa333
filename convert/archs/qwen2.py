"""Qwen 1.5 to 2.5, QwQ: Llama with biases on queries, keys and values, whose heads rotate by halves."""

from __future__ import annotations

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, when
from llmkit.convert.archs.structure import Structure


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Qwen2Config."""
    hparams = decoder.read_decoder(config, n_kv_heads=32, n_context=32768)
    decoder.require_heads_of_model_width(config, hparams)
    return hparams


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """llama.cpp attends to everything, also in the blocks that slide a window where the config turns that on."""
    if not config.boolean("use_sliding_window", False):
        return ()
    kinds, first = (config.values.get(key) for key in ("layer_types", "max_window_layers"))
    if isinstance(kinds, list):
        slides = "sliding_attention" in kinds
    else:
        slides = (first if isinstance(first, int) else 28) < hparams.n_layers
    return decoder.unused_window(config.values.get("sliding_window", 4096), hparams) if slides else ()


TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(bias=when(lambda h: True)),
    *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.gated_mlp(),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    gguf_architecture="qwen2",
    read_hparams=read_hparams,
    write_config=decoder.write_without_biases,
    tensors=TENSORS,
    notes=notes,
    structure=Structure(complete=decoder.with_windows_of_some),
)
