"""Granite 3: Llama with multipliers at the embedding, in attention, at every residual and at the logits."""

from __future__ import annotations

from dataclasses import replace

from llmkit.convert.archs import blocks, llama
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GraniteConfig."""
    return with_multipliers(config, blocks.read_decoder(config, n_context=2048))


def with_multipliers(config: ConfigReader, h: HParams) -> HParams:
    """The same with Granite's four multipliers, of which the last divides the logits.

    All are stated: without a key llama.cpp scales attention by 1/sqrt(head_dim), and needs that of the logits.
    """
    return replace(
        h,
        attention_scale=config.number("attention_multiplier", 1.0),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logit_scale=config.number("logits_scaling", 1.0),
    )


FAMILY = Family(
    model_type="granite",
    architectures=("GraniteForCausalLM",),
    gguf_architecture="granite",
    read_hparams=read_hparams,
    tensors=llama.TENSORS,
)
