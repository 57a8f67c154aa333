"""Mamba 2: Mamba with one time step for a head of many channels, and a norm before the output."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import HParams, StateSpace
from llmkit.convert.archs.mamba import (
    LAYER,
    MIXER,
    convolution,
    inner,
    inner_width,
    read_state_space,
    states_of,
    write_state_space,
)
from llmkit.convert.archs.rules import Family, Source, tensor
from llmkit.convert.transforms import Map
from llmkit.errors import FormatError, UnsupportedError


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' Mamba2Config."""
    n_embd = config.integer("hidden_size", 4096)
    n_inner, n_heads, head_dim = (
        inner_width(config, n_embd),
        config.integer("num_heads", 128),
        config.integer("head_dim", 64),
    )
    n_groups = config.integer("n_groups", 8)
    if n_heads * head_dim != n_inner:
        raise FormatError(
            config.path, f"num_heads {n_heads} times head_dim {head_dim} is not the width of the channels, {n_inner}"
        )
    if n_heads % n_groups:
        raise FormatError(config.path, f"num_heads {n_heads} is not divisible by n_groups {n_groups}")
    limits = config.values.get("time_step_limit")
    if limits is not None and not _is_no_limit(limits):
        raise UnsupportedError(f"{config.path}: time_step_limit {excerpt(limits)}; llama.cpp does not limit time steps")
    states = StateSpace(
        n_inner=n_inner,
        n_convolved=config.integer("conv_kernel", 4),
        n_state=config.integer("state_size", 128),
        rank=n_heads,
        n_groups=n_groups,
    )
    return read_state_space(config, states, n_embd=n_embd, n_layers=64, tied=False)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    states = states_of(h)
    return {
        **write_state_space(h),
        "num_heads": states.rank,
        "head_dim": states.n_inner // states.rank,
        "n_groups": states.n_groups or 1,
    }


def _is_no_limit(limits: object) -> bool:
    """Whether no time step is below the first or above the second; JSON has infinity as a number or as an object."""
    if not isinstance(limits, list) or len(limits) != 2 or limits[0] != 0:
        return False
    return limits[1] in (float("inf"), {"__float__": "Infinity"})


def _convolved(h: HParams) -> int:
    """Channels, and what they write to the states and read from them."""
    states = states_of(h)
    return states.n_inner + 2 * (states.n_groups or 1) * states.n_state


def _heads(h: HParams) -> tuple[int, ...]:
    return (states_of(h).rank, 1)


_NORM = Source(MIXER + "norm.weight", stored=lambda h: (inner(h),))

FAMILY = Family(
    model_type="mamba2",
    architectures=("Mamba2ForCausalLM",),
    gguf_architecture="mamba2",
    read_hparams=read_hparams,
    tensors=(
        *blocks.linear("token_embd", lambda h: h.n_vocab, blocks.embd, "backbone.embeddings", "backbone.embedding"),
        *blocks.norm("attn_norm", LAYER + "norm"),
        *blocks.linear(
            "ssm_in", lambda h: inner(h) + _convolved(h) + states_of(h).rank, blocks.embd, MIXER + "in_proj"
        ),
        *convolution(_convolved),
        tensor("ssm_dt.bias", lambda h: (states_of(h).rank,), MIXER + "dt_bias"),
        tensor("ssm_a", _heads, Source(MIXER + "A_log", stored=lambda h: (states_of(h).rank,)), map=Map.NEGATED_EXP),
        tensor("ssm_d", _heads, Source(MIXER + "D", stored=lambda h: (states_of(h).rank,))),
        tensor(
            "ssm_norm.weight", lambda h: (states_of(h).n_groups or 1, inner(h) // (states_of(h).n_groups or 1)), _NORM
        ),
        *blocks.linear("ssm_out", blocks.embd, inner, MIXER + "out_proj"),
        *blocks.norm("output_norm", "backbone.norm_f"),
        *blocks.head(),
    ),
    write_config=write_config,
    prefixes=(("model.backbone.", "backbone."), ("model.lm_head.", "lm_head.")),
)
