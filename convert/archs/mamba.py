"""Mamba: states that each token updates, in place of attention."""

from __future__ import annotations

from typing import Any, Final

from llmkit.convert.archs import blocks
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams, LacksPartError, StateSpace
from llmkit.convert.archs.rules import Family, Presence, Source, TensorRule, tensor
from llmkit.convert.transforms import Map
from llmkit.errors import UnsupportedError

# Nothing limits the context of such a model; files must state one, and this is what llama.cpp's converter states.
N_CONTEXT: Final = 2**20

LAYER: Final = "backbone.layers.{i}."
MIXER: Final = LAYER + "mixer."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' MambaConfig."""
    n_embd = config.integer("hidden_size", 768)
    automatic = config.values.get("time_step_rank") in (None, "auto")
    states = StateSpace(
        n_inner=inner_width(config, n_embd),
        n_convolved=config.integer("conv_kernel", 4),
        n_state=config.integer("state_size", 16),
        rank=-(-n_embd // 16) if automatic else config.integer("time_step_rank"),
        normed=False,
    )
    if states.n_inner != 2 * n_embd:
        raise UnsupportedError(
            f"{config.path}: intermediate_size {states.n_inner} for hidden_size {n_embd}; llama.cpp computes this "
            "architecture with twice as many only"
        )
    return read_state_space(config, states, n_embd=n_embd, n_layers=32, tied=True)


def inner_width(config: ConfigReader, n_embd: int) -> int:
    """How many channels there are: intermediate_size, else `expand` times the width of the model."""
    return config.integer("intermediate_size", int(config.number("expand", 2.0) * n_embd))


def read_state_space(config: ConfigReader, states: StateSpace, *, n_embd: int, n_layers: int, tied: bool) -> HParams:
    """Hyper-parameters of a model of state-space layers only; n_layers and tied: where config.json says nothing."""
    config.require("hidden_act", ("silu", "swish"), "silu")
    if not config.boolean("use_conv_bias", True):
        raise UnsupportedError(f"{config.path}: use_conv_bias is false; llama.cpp computes with biases only")
    return HParams(
        n_layers=config.integer("num_hidden_layers", n_layers),
        n_embd=n_embd,
        n_ff=0,
        n_heads=0,
        n_kv_heads=0,
        head_dim=0,
        n_vocab=config.integer("vocab_size"),
        n_context=N_CONTEXT,
        rms_eps=config.number("layer_norm_epsilon", 1e-5),
        tied_embeddings=config.boolean("tie_word_embeddings", tied),
        states=states,
    )


def write_state_space(h: HParams) -> dict[str, Any]:
    """`read_state_space` backwards, with what all of these models call the same."""
    states = states_of(h)
    whole, rest = divmod(states.n_inner, h.n_embd)
    return {
        "vocab_size": h.n_vocab,
        "hidden_size": h.n_embd,
        "num_hidden_layers": h.n_layers,
        "expand": states.n_inner / h.n_embd if rest else whole,
        "intermediate_size": states.n_inner,
        "conv_kernel": states.n_convolved,
        "state_size": states.n_state,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
        "layer_norm_epsilon": h.rms_eps,
        "tie_word_embeddings": h.tied_embeddings,
    }


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**write_state_space(h), "time_step_rank": states_of(h).rank}


def states_of(h: HParams) -> StateSpace:
    """The state-space layers of a model that has them."""
    if h.states is None:
        raise LacksPartError("state-space layers")
    return h.states


def inner(h: HParams) -> int:
    """Width of the channels."""
    return states_of(h).n_inner


def convolution(width: blocks.Size) -> tuple[TensorRule, ...]:
    """A kernel for each of the channels; checkpoints store an axis of one more."""
    weight = Source(
        MIXER + "conv1d.weight",
        stored=lambda h: (width(h), 1, states_of(h).n_convolved),
        view=lambda h, stored: stored.at(1, 0),
    )
    return (
        tensor("ssm_conv1d.weight", lambda h: (width(h), states_of(h).n_convolved), weight),
        tensor("ssm_conv1d.bias", lambda h: (width(h),), MIXER + "conv1d.bias"),
    )


def _rank(h: HParams) -> int:
    return states_of(h).rank


TENSORS = (
    *blocks.linear("token_embd", lambda h: h.n_vocab, blocks.embd, "backbone.embeddings", "backbone.embedding"),
    *blocks.norm("attn_norm", LAYER + "norm"),
    *blocks.linear("ssm_in", lambda h: 2 * inner(h), blocks.embd, MIXER + "in_proj"),
    *convolution(inner),
    *blocks.linear("ssm_x", lambda h: _rank(h) + 2 * states_of(h).n_state, inner, MIXER + "x_proj"),
    *blocks.linear("ssm_dt", inner, _rank, MIXER + "dt_proj", bias=lambda h: Presence.REQUIRED),
    tensor("ssm_a", lambda h: (inner(h), states_of(h).n_state), MIXER + "A_log", map=Map.NEGATED_EXP),
    tensor("ssm_d", lambda h: (inner(h),), MIXER + "D"),
    *blocks.linear("ssm_out", blocks.embd, inner, MIXER + "out_proj"),
    *blocks.norm("output_norm", "backbone.norm_f"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="mamba",
    architectures=("MambaForCausalLM",),
    gguf_architecture="mamba",
    read_hparams=read_hparams,
    tensors=TENSORS,
    write_config=write_config,
    wrote=lambda h: not states_of(h).normed,
)
