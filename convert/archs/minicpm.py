"""MiniCPM 1B, 2B and 4: Llama with the embedding, what blocks add and the logits scaled."""

from __future__ import annotations

import math
from dataclasses import replace

from llmkit.convert.archs import blocks, llama
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family
from llmkit.errors import UnsupportedError


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of the published MiniCPMConfig."""
    if "num_experts" in config and config.values["num_experts"] != 0:
        raise UnsupportedError(
            f"{config.path}: num_experts; of this architecture llmkit knows the models without experts"
        )
    h = blocks.read_decoder(config, n_context=2048, tied=True)
    return replace(
        h,
        embedding_scale=config.number("scale_emb", 1.0),
        residual_scale=config.number("scale_depth", 1.0) / math.sqrt(h.n_layers),
        logit_scale=h.n_embd / config.number("dim_model_base", 1.0),
    )


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """Long texts may be attended to sparsely."""
    if "sparse_config" in config:
        return ("sparse_config is not carried over: llama.cpp attends to everything, in long texts too",)
    return ()


FAMILY = Family(
    model_type="minicpm",
    architectures=("MiniCPMForCausalLM",),
    gguf_architecture="minicpm",
    read_hparams=read_hparams,
    tensors=llama.TENSORS,
    unused=llama.FAMILY.unused,
    notes=notes,
)
