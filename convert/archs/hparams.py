"""The hyper-parameters that describe a model, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmkit.convert.archs.rope import Rope
from llmkit.formats.gguf import Value


class LacksPartError(LookupError):
    """A rule is of a part that the hyper-parameters do not have: they are those of another family.

    A config.json always leads to what its family's rules ask for; a GGUF file of a shared architecture may not.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the MLP, in numbers of experts and weights.

    `n_ff` is the width of one expert, None where the model's own width is that. `weights_scale` multiplies what the
    router gives, after `weights_norm` made the chosen ones add up to 1. The first `n_dense_layers` blocks have an
    ordinary MLP.
    """

    n_experts: int
    n_used: int
    n_ff: int | None = None
    n_shared: int | None = None
    n_ff_shared: int | None = None
    weights_scale: float | None = None
    weights_norm: bool | None = None
    gating: str | None = None  # "softmax" or "sigmoid"; None: the architecture has one kind
    n_dense_layers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: all heads' keys and values come from `kv_rank` latent numbers a token.

    Likewise the queries from `q_rank`, or straight from the residual stream if it is None. Of each head's keys
    `n_plain` numbers are its own and without position; `n_rotated` carry the position and are the same for all heads.
    A head's values are `n_values` wide.
    """

    q_rank: int | None
    kv_rank: int
    n_plain: int
    n_rotated: int
    n_values: int

    @property
    def n_keys(self) -> int:
        """Width of one head's queries and keys."""
        return self.n_plain + self.n_rotated


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace:
    """Layers that carry a state from token to token in place of attention, in numbers of channels and tokens.

    `n_inner` channels are convolved over `n_convolved` tokens and have a state of `n_state` numbers each. `rank` is
    that of the matrix that gives each channel its time step (Mamba), or the number of heads, of channels that share one
    (Mamba 2). Each of `n_groups` groups of heads shares what is written to the states and read from them; None has no
    groups. `normed` tells whether that and the time step are normalised.
    """

    n_inner: int
    n_convolved: int
    n_state: int
    rank: int
    n_groups: int | None = None
    normed: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HParams:
    """Hyper-parameters of a model, in numbers of weights, heads, tokens. None stands for what it does not have.

    A model without attention has 0 heads, one without MLP a width of 0. `sliding_layers` tells for each block whether
    it attends to the last `sliding_window` tokens only; None leaves that to the architecture. `sliding_rope` is the
    rotary embedding of these blocks where it is another one than `rope`. Attention and MLP side by side share a norm,
    or have one each: `n_parallel_norms`. `causal` false is for encoders, whose tokens attend to those behind them too;
    `first_position` is the row of their position embeddings that the first token has, `pooling` ("mean", "cls" or
    "last") how the embeddings of tokens become one of the text. `extra` holds what only one family has, by its GGUF key
    without the architecture in front.
    """

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    n_context: int
    rms_eps: float | None = None
    norm_eps: float | None = None
    rope: Rope | None = None
    tied_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    latent: LatentAttention | None = None
    experts: Experts | None = None
    states: StateSpace | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None
    sliding_rope: Rope | None = None
    attention_scale: float | None = None
    embedding_scale: float | None = None
    residual_scale: float | None = None
    logit_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    parallel_residual: bool | None = None
    causal: bool | None = None
    first_position: int = 0
    n_token_types: int | None = None
    pooling: str | None = None
    n_parallel_norms: int = 1
    extra: Mapping[str, Value] = field(default_factory=dict)
