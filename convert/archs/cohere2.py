"""Command R7B and Command A: Command R with sliding windows in three blocks of four; the fourth has no rotation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import cohere, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family

# What llama.cpp takes for granted where the file does not list the blocks.
_EVERY = 4


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Cohere2Config."""
    config.require_boolean("use_qk_norm", False)
    found = cohere.read_without_context(config, read_rope(config))
    every = config.integer("sliding_window_pattern", _EVERY)
    layers = decoder.read_sliding_layers(config, found.n_layers, every=every)
    listed = None if layers == _usual_layers(found) else layers
    return replace(found, sliding_window=decoder.read_window(config, 4096), sliding_layers=listed)


def _usual_layers(h: HParams) -> tuple[bool, ...]:
    return tuple((i + 1) % _EVERY != 0 for i in range(h.n_layers))


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    layers = h.sliding_layers or _usual_layers(h)
    return {
        **cohere.write_config(h),
        "sliding_window": h.sliding_window,
        **decoder.write_sliding_layers(layers),
    }


FAMILY = Family(
    model_type="cohere2",
    architectures=("Cohere2ForCausalLM",),
    gguf_architecture="cohere2",
    read_hparams=read_hparams,
    tensors=cohere.TENSORS,
    write_config=write_config,
    # Some checkpoints hold biases, all of them zero, which transformers does not load either.
    unused=(r"model\..+\.bias",),
)
