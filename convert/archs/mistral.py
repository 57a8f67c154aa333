"""Mistral 7B and Nemo: Llama with other defaults and, in the first version, a sliding window."""

from __future__ import annotations

from llmkit.convert.archs import decoder, llama
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family
from llmkit.convert.archs.structure import Structure


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' MistralConfig."""
    return decoder.read_decoder(config, n_kv_heads=8, n_context=131072)


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """The `llama` graph of llama.cpp attends to everything, which differs beyond the window only."""
    return decoder.unused_window(config.values.get("sliding_window", 4096), hparams)


FAMILY = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    gguf_architecture="llama",
    read_hparams=read_hparams,
    tensors=llama.TENSORS,
    unused=llama.FAMILY.unused,
    notes=notes,
    structure=Structure(complete=lambda config, h: decoder.with_window(config, h, 4096)),
)
