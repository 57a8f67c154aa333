"""OLMo 2: normalisations of queries, of keys, and of what attention and MLP put out, none of what goes in."""

from __future__ import annotations

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import Rope, read_rope
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Olmo2Config."""
    return read_without_window(config, read_rope(config))


def read_without_window(config: ConfigReader, rope: Rope) -> HParams:
    """Hyper-parameters that OLMo 2 and 3 share."""
    config.require_boolean("attention_bias", False)
    config.require_boolean("tie_word_embeddings", False)
    found = decoder.read_decoder(config, n_context=2048, rms_eps=1e-5, rope=rope.without_factors())
    return decoder.require_heads_of_model_width(config, found)


LAYER = "model.layers.{i}."

TENSORS = (
    *blocks.embedding(),
    *blocks.attention(),
    *blocks.norm("attn_q_norm", blocks.ATTENTION + "q_norm", width=blocks.queries),
    *blocks.norm("attn_k_norm", blocks.ATTENTION + "k_norm", width=blocks.keys),
    *blocks.norm("post_attention_norm", LAYER + "post_attention_layernorm"),
    *blocks.gated_mlp(),
    *blocks.norm("post_ffw_norm", LAYER + "post_feedforward_layernorm"),
    *blocks.norm("output_norm", "model.norm"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="olmo2",
    architectures=("Olmo2ForCausalLM",),
    gguf_architecture="olmo2",
    read_hparams=read_hparams,
    tensors=TENSORS,
    write_config=decoder.write_decoder,
    wrote=lambda h: h.sliding_window is None,
    structure=Structure(
        norm_before_attention=None,
        norm_after_attention="post_attention_norm",
        norm_before_mlp=None,
        norm_after_mlp="post_ffw_norm",
    ),
)
