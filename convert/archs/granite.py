"""Granite 3: Llama with multipliers at the embedding, in attention, at every residual and at the logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import decoder, llama
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GraniteConfig."""
    return with_multipliers(config, decoder.read_decoder(config, n_context=2048))


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


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {
        **decoder.write_decoder(h),
        "attention_multiplier": h.attention_scale,
        "embedding_multiplier": h.embedding_scale,
        "residual_multiplier": h.residual_scale,
        "logits_scaling": h.logit_scale,
    }


FAMILY = Family(
    model_type="granite",
    architectures=("GraniteForCausalLM",),
    gguf_architecture="granite",
    read_hparams=read_hparams,
    tensors=llama.TENSORS,
    write_config=write_config,
    # Which Granite 4, whose files have the same tensors, states.
    wrote=lambda h: "rope.scaling.finetuned" not in h.extra,
    structure=Structure(logit_scale=lambda h: 1 / (h.logit_scale or 1.0)),
)
