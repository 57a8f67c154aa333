"""Falcon Mamba: Mamba that normalises the time steps and what is written to the states and read from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import mamba
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' FalconMambaConfig."""
    h = mamba.read_hparams(config)
    return replace(h, states=replace(mamba.states_of(h), normed=True))


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """llama.cpp has one epsilon."""
    eps = config.number("mixer_rms_eps", 1e-6)
    if eps == hparams.rms_eps:
        return ()
    return (
        f"mixer_rms_eps {eps:g} is not carried over: llama.cpp normalises everything with layer_norm_epsilon "
        f"{hparams.rms_eps:g}, which differs little",
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; llama.cpp has one epsilon."""
    return {**mamba.write_config(h), "mixer_rms_eps": h.rms_eps}


FAMILY = Family(
    model_type="falcon_mamba",
    architectures=("FalconMambaForCausalLM",),
    gguf_architecture="mamba",
    read_hparams=read_hparams,
    tensors=mamba.TENSORS,
    notes=notes,
    write_config=write_config,
    wrote=lambda h: bool(mamba.states_of(h).normed),
)
