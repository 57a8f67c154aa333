"""MiniCPM 1B, 2B and 4: Llama with the embedding, what blocks add and the logits scaled."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from llmkit.convert.archs import decoder, llama
from llmkit.convert.archs.config import ConfigReader, plainest
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family
from llmkit.errors import UnsupportedError


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of the published MiniCPMConfig."""
    if "num_experts" in config and config.values["num_experts"] != 0:
        raise UnsupportedError(
            f"{config.path}: num_experts; of this architecture llmkit knows the models without experts"
        )
    h = decoder.read_decoder(config, n_context=2048, tied=True)
    return replace(
        h,
        embedding_scale=config.number("scale_emb", 1.0),
        residual_scale=config.number("scale_depth", 1.0) / math.sqrt(h.n_layers),
        logit_scale=h.n_embd / config.number("dim_model_base", 1.0),
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; for scales that older files leave out, llama.cpp has those of the first models."""
    root = math.sqrt(h.n_layers)
    depth = 1.4 if h.residual_scale is None else plainest(h.residual_scale * root, lambda x: x / root)
    base = 256 if not h.logit_scale else plainest(h.n_embd / h.logit_scale, lambda x: h.n_embd / x)
    return {
        **decoder.write_decoder(h),
        "scale_emb": 12.0 if h.embedding_scale is None else h.embedding_scale,
        "scale_depth": depth,
        "dim_model_base": int(base) if base == int(base) else base,
    }


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
    write_config=write_config,
)
