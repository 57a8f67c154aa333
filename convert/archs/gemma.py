"""Gemma 1: Llama with wide heads, scaled embeddings, tied output and norms that store w - 1."""

from __future__ import annotations

import math
from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import Rope, read_rope
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure
from llmkit.convert.transforms import Map
from llmkit.errors import UnsupportedError

HEAD_DIM = 256  # of every Gemma whose config.json does not say
_GELU = "gelu_pytorch_tanh"


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GemmaConfig."""
    # The first release says "gelu" and means the approximation, as transformers knows.
    config.require("hidden_act", ("gelu", _GELU), _GELU)
    require_tied(config)
    return read_gemma(config, n_kv_heads=16, n_context=8192, rope=read_rope(config))


def read_gemma(config: ConfigReader, *, n_kv_heads: int, n_context: int, rope: Rope) -> HParams:
    """What all Gemmas share, once the activation is known to be the approximate GELU that llama.cpp computes."""
    if config.boolean("attention_bias", False):
        raise UnsupportedError(f"{config.path}: attention_bias true; llama.cpp computes Gemma without biases")
    if config.boolean("use_bidirectional_attention", False):
        raise UnsupportedError(
            f"{config.path}: use_bidirectional_attention true; llama.cpp attends to earlier tokens only"
        )
    rope.require("default", "linear")
    settings = ConfigReader(config.path, {**config.values, "hidden_act": _GELU})
    return decoder.read_decoder(
        settings,
        n_kv_heads=n_kv_heads,
        head_dim=HEAD_DIM,
        n_context=n_context,
        rope=rope,
        activation=_GELU,
        tied=True,
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; the activation under the name of either generation of config.json."""
    return {**decoder.write_decoder(h), "hidden_act": _GELU, "hidden_activation": _GELU}


def require_tied(config: ConfigReader) -> None:
    """Refuse an output matrix of its own, for which the graphs of Gemma 1 and 2 have no place."""
    if not config.boolean("tie_word_embeddings", True):
        raise UnsupportedError(
            f"{config.path}: tie_word_embeddings {excerpt(config.values['tie_word_embeddings'])}; llama.cpp computes "
            "this architecture with the embedding as output matrix only"
        )


def embedding_scale(h: HParams) -> float:
    """What multiplies the embeddings of all Gemmas."""
    return math.sqrt(h.n_embd)


def norm(role: str, name: str, width: blocks.Size = blocks.embd) -> blocks.Rules:
    """An RMS norm that multiplies by 1 + w."""
    return blocks.norm(role, name, width=width, map=Map.ADD_ONE)


TENSORS = (
    *blocks.embedding(),
    *norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(),
    *norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
    *blocks.gated_mlp(),
    *norm("output_norm", "model.norm"),
)

FAMILY = Family(
    model_type="gemma",
    architectures=("GemmaForCausalLM",),
    gguf_architecture="gemma",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=TENSORS,
    # A copy of the embedding that some tools save; transformers does not read it either.
    unused=(r"lm_head\.weight",),
    structure=Structure(activation="gelu_tanh", embedding_scale=embedding_scale),
)
