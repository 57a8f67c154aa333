"""Rules for the parts that most decoders are built of, under the names that most checkpoints use.

Each function returns the rules of one part; a family lists the parts it has, in the order it computes them.
"""

from __future__ import annotations

from collections.abc import Callable

from llmkit.convert.archs.hparams import Experts, HParams, LacksPartError
from llmkit.convert.archs.rules import Arrangement, Presence, Source, TensorRule, required, tensor, untied
from llmkit.convert.transforms import Map, View

ATTENTION = "model.layers.{i}.self_attn."
MLP = "model.layers.{i}.mlp."

Size = Callable[[HParams], int]
Rules = tuple[TensorRule, ...]


def embd(h: HParams) -> int:
    """Width of the residual stream."""
    return h.n_embd


def queries(h: HParams) -> int:
    """Width of all query heads together."""
    return h.n_heads * h.head_dim


def keys(h: HParams) -> int:
    """Width of all key heads together, and of all value heads."""
    return h.n_kv_heads * h.head_dim


def ff(h: HParams) -> int:
    """Width of the MLP."""
    return h.n_ff


def experts_of(h: HParams) -> Experts:
    """The mixture of experts of a model that has one."""
    if h.experts is None:
        raise LacksPartError("experts")
    return h.experts


def has_experts(h: HParams) -> bool:
    """Whether the model is a mixture of experts."""
    return h.experts is not None


def expert_ff(h: HParams) -> int:
    """Width of the MLP of one expert."""
    return experts_of(h).n_ff or h.n_ff


def shared_ff(h: HParams) -> int:
    """Width of the MLP of the shared experts together."""
    return experts_of(h).n_ff_shared or expert_ff(h)


def interleaved_heads(h: HParams, stored: View) -> View:
    """Within each head, row j of the first half and row j of the second become rows 2j and 2j+1.

    Hugging Face rotates (j, j + head_dim/2), some graphs of llama.cpp rotate (2j, 2j + 1): the rows of the query and
    key projections are brought into that order.
    """
    return stored.split(0, -1, 2, h.head_dim // 2).swap(1, 2)


def three_per_head(h: HParams, stored: View) -> View:
    """From each head's query, key and value, head after head, to all queries, all keys, all values."""
    return stored.split(0, h.n_heads, 3, h.head_dim).swap(0, 1)


def linear(
    role: str,
    rows: Size,
    columns: Size,
    *names: str,
    view: Arrangement | None = None,
    bias: Callable[[HParams], Presence] | None = None,
    presence: Callable[[HParams], Presence] = lambda h: Presence.REQUIRED,
    blocks: Callable[[HParams, int], bool] = lambda h, i: True,
) -> Rules:
    """A matrix [rows, columns], and its bias unless that is None. `view` is of either."""
    weight = tensor(
        f"{role}.weight",
        lambda h: (rows(h), columns(h)),
        *(f"{name}.weight" for name in names),
        view=view,
        presence=presence,
        blocks=blocks,
    )
    if bias is None:
        return (weight,)
    vector = tensor(
        f"{role}.bias",
        lambda h: (rows(h),),
        *(f"{name}.bias" for name in names),
        view=view,
        presence=bias,
        blocks=blocks,
    )
    return weight, vector


def norm(
    role: str,
    *names: str,
    width: Size = embd,
    bias: Callable[[HParams], Presence] | None = None,
    presence: Callable[[HParams], Presence] = lambda h: Presence.REQUIRED,
    map: Map | None = None,
) -> Rules:
    """The weights of a normalisation, and its bias unless that is None; `map` is done to the weights."""
    shape = lambda h: (width(h),)  # noqa: E731
    weight = tensor(f"{role}.weight", shape, *(f"{name}.weight" for name in names), presence=presence, map=map)
    if bias is None:
        return (weight,)
    return weight, tensor(f"{role}.bias", shape, *(f"{name}.bias" for name in names), presence=bias)


def layer_norm(role: str, *names: str, map: Map | None = None) -> Rules:
    """A LayerNorm's weights and bias; `map` is done to the weights."""
    return norm(role, *names, bias=required, map=map)


def embedding(name: str = "model.embed_tokens") -> Rules:
    """The token embedding."""
    return linear("token_embd", lambda h: h.n_vocab, embd, name)


def head(name: str = "lm_head", bias: Callable[[HParams], Presence] | None = None) -> Rules:
    """The output matrix, which tied embeddings do without."""
    return linear("output", lambda h: h.n_vocab, embd, name, presence=untied, bias=bias)


def head_norms(prefix: str = ATTENTION) -> Rules:
    """Normalisations of each head's query and of its key, the same for all heads."""
    return (
        *norm("attn_q_norm", prefix + "q_norm", width=lambda h: h.head_dim),
        *norm("attn_k_norm", prefix + "k_norm", width=lambda h: h.head_dim),
    )


def output_matrix(name: str = "lm_head", embedding: str = "model.embed_tokens") -> Rules:
    """The output matrix of graphs that do not look at the embedding: with tied embeddings it is there twice."""
    twice = Source(f"{embedding}.weight", given=lambda h: h.tied_embeddings)
    return (tensor("output.weight", lambda h: (h.n_vocab, h.n_embd), f"{name}.weight", twice),)


def attention(
    prefix: str = ATTENTION,
    *,
    view: Callable[[HParams, View], View] | None = None,
    bias: Callable[[HParams], Presence] | None = None,
    output: str = "o_proj",
    output_bias: Callable[[HParams], Presence] | None = None,
) -> Rules:
    """Projections to queries, keys and values, and back; `view` is of queries and keys."""
    return (
        *linear("attn_q", queries, embd, prefix + "q_proj", view=view, bias=bias),
        *linear("attn_k", keys, embd, prefix + "k_proj", view=view, bias=bias),
        *linear("attn_v", keys, embd, prefix + "v_proj", bias=bias),
        *linear("attn_output", embd, queries, prefix + output, bias=output_bias),
    )


def fused_attention(
    name: str,
    output: str,
    *,
    view: Arrangement | None = None,
    bias: Callable[[HParams], Presence] | None = None,
) -> Rules:
    """One projection to all queries, then all keys, then all values (an order that `view` makes), and back."""
    return (
        *linear("attn_qkv", lambda h: queries(h) + 2 * keys(h), embd, name, view=view, bias=bias),
        *linear("attn_output", embd, queries, output, bias=bias),
    )


def mlp(up: str, down: str, *, bias: Callable[[HParams], Presence] | None = None) -> Rules:
    """An MLP without a gate."""
    return (
        *linear("ffn_up", ff, embd, up, bias=bias),
        *linear("ffn_down", embd, ff, down, bias=bias),
    )


def gated_mlp(
    prefix: str = MLP,
    *,
    bias: Callable[[HParams], Presence] | None = None,
    blocks: Callable[[HParams, int], bool] = lambda h, i: True,
) -> Rules:
    """An MLP whose gate multiplies what goes up."""
    return (
        *linear("ffn_gate", ff, embd, prefix + "gate_proj", bias=bias, blocks=blocks),
        *linear("ffn_up", ff, embd, prefix + "up_proj", bias=bias, blocks=blocks),
        *linear("ffn_down", embd, ff, prefix + "down_proj", bias=bias, blocks=blocks),
    )


def gated_experts(
    prefix: str = MLP,
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    joined_prefix: str = MLP,
    blocks: Callable[[HParams, int], bool] = lambda h, i: True,
) -> Rules:
    """Gated MLPs of a mixture of experts: one tensor for each, or all in one with gate and up joined.

    The names `gate`, `up` and `down` are those of one expert's, below `prefix`; transformers 5 has all in one, under
    the same names in every family, below `joined_prefix`: gate_up_proj [experts, 2 * width, embd], the gates first,
    and down_proj [experts, embd, width].
    """

    def joined(place: int) -> Source:
        return Source(
            joined_prefix + "experts.gate_up_proj",
            stored=lambda h: (experts_of(h).n_experts, 2 * expert_ff(h), h.n_embd),
            view=lambda h, stored: stored.split(1, 2, -1).at(1, place),
        )

    def up_shape(h: HParams) -> tuple[int, ...]:
        return (experts_of(h).n_experts, expert_ff(h), h.n_embd)

    def down_shape(h: HParams) -> tuple[int, ...]:
        return (experts_of(h).n_experts, h.n_embd, expert_ff(h))

    each, all_downs = prefix + "experts.{e}.", joined_prefix + "experts.down_proj"
    return (
        tensor("ffn_gate_exps.weight", up_shape, f"{each}{gate}.weight", joined(0), blocks=blocks),
        tensor("ffn_up_exps.weight", up_shape, f"{each}{up}.weight", joined(1), blocks=blocks),
        tensor("ffn_down_exps.weight", down_shape, f"{each}{down}.weight", all_downs, blocks=blocks),
    )


def shared_experts(
    prefix: str, *, gate: str | None = None, blocks: Callable[[HParams, int], bool] = lambda h, i: True
) -> Rules:
    """The gated MLP that every token passes beside its experts; `gate` is a row whose sigmoid multiplies the result."""
    mlp = (
        *linear("ffn_gate_shexp", shared_ff, embd, prefix + "gate_proj", blocks=blocks),
        *linear("ffn_up_shexp", shared_ff, embd, prefix + "up_proj", blocks=blocks),
        *linear("ffn_down_shexp", embd, shared_ff, prefix + "down_proj", blocks=blocks),
    )
    if gate is None:
        return mlp
    return (*linear("ffn_gate_inp_shexp", lambda h: 1, embd, gate, blocks=blocks), *mlp)


def router(*names: str, blocks: Callable[[HParams, int], bool] = lambda h, i: True) -> Rules:
    """The matrix that chooses experts."""
    return linear("ffn_gate_inp", lambda h: experts_of(h).n_experts, embd, *names, blocks=blocks)
