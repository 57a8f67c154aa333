"""Rules for the parts that most decoders are built of, under the names that most checkpoints use.

Each function returns the rules of one part; a family lists the parts it has, in the order it computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmkit.convert.archs import gelu
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import Experts, HParams, LacksPartError
from llmkit.convert.archs.rope import Rope, read_rope, write_rope
from llmkit.convert.archs.rules import Arrangement, Presence, Source, TensorRule, required, tensor, untied
from llmkit.convert.transforms import Map, View
from llmkit.errors import FormatError, UnsupportedError

ATTENTION = "model.layers.{i}.self_attn."
MLP = "model.layers.{i}.mlp."

# llama.cpp's, where a file says nothing.
_THETA = 10000.0

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


class Heads:
    """Numbers of heads and their width, as most config.json state them."""

    def __init__(self, config: ConfigReader, *, n_kv_heads: int | None = None, head_dim: int | None = None) -> None:
        """Read and check them.

        n_kv_heads: where config.json lacks num_key_value_heads; None, there or here, means as many as query heads.
        head_dim: where config.json lacks it; None means the width of the model shared out.
        """
        n_embd = config.integer("hidden_size")
        self.n_heads = config.integer("num_attention_heads")
        no_word = n_kv_heads is None or "num_key_value_heads" in config.values
        self.n_kv_heads = config.integer("num_key_value_heads", self.n_heads if no_word else n_kv_heads)
        if head_dim is None:
            if "head_dim" not in config and n_embd % self.n_heads:
                raise FormatError(
                    config.path, f"hidden_size {n_embd} is not divisible by num_attention_heads {self.n_heads}"
                )
            head_dim = n_embd // self.n_heads
        self.head_dim = config.integer("head_dim", head_dim)
        if self.n_heads % self.n_kv_heads:
            raise FormatError(
                config.path,
                f"num_attention_heads {self.n_heads} is not divisible by num_key_value_heads {self.n_kv_heads}",
            )
        if self.head_dim % 2:
            raise FormatError(config.path, f"head_dim {self.head_dim} is odd; rotary embedding needs pairs")


def require_heads_of_model_width(config: ConfigReader, h: HParams) -> HParams:
    """The hyper-parameters, of an architecture whose heads together must be as wide as the model."""
    if queries(h) != h.n_embd:
        raise config.unsupported(
            "head_dim",
            h.head_dim,
            f"llama.cpp computes this architecture with hidden_size / num_attention_heads, {h.n_embd} / {h.n_heads}",
        )
    return h


def read_sliding_layers(config: ConfigReader, n_layers: int, *, every: int = 4) -> tuple[bool, ...]:
    """For each block whether it has a sliding window, by `layer_types`; else each `every`-th has none."""
    names = config.values.get("layer_types")
    if names is None:
        return tuple((i + 1) % every != 0 for i in range(n_layers))
    known = ("sliding_attention", "full_attention")
    if not isinstance(names, list) or len(names) != n_layers or any(name not in known for name in names):
        raise FormatError(
            config.path,
            f"layer_types must be a list of {n_layers} names, {' or '.join(known)}, found {excerpt(names)}",
        )
    return tuple(name == "sliding_attention" for name in names)


def write_sliding_layers(layers: tuple[bool, ...]) -> dict[str, Any]:
    """`read_sliding_layers` backwards."""
    return {"layer_types": ["sliding_attention" if sliding else "full_attention" for sliding in layers]}


def read_window(config: ConfigReader, default: int) -> int:
    """The width of the sliding window, in tokens; UnsupportedError where config.json says that there is none."""
    if config.values.get("sliding_window", default) is None:
        raise config.unsupported("sliding_window", None, "llama.cpp computes this architecture with a window only")
    return config.integer("sliding_window", default)


def read_decoder(
    config: ConfigReader,
    *,
    n_context: int,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    rms_eps: float = 1e-6,
    layer_norm_eps: str | None = None,
    rope: Rope | None = None,
    activation: str = "silu",
    tied: bool = False,
) -> HParams:
    """What most decoders' config.json states, under the usual names.

    n_context, rms_eps, activation, tied: where config.json says nothing; n_kv_heads and head_dim: see `Heads`.
    layer_norm_eps: the key of the epsilon (1e-5 if it is missing) of models with LayerNorm, which have no rms_eps.
    rope: if it takes more than `read_rope(config)` to read.
    """
    alike = next((names for names in (("silu", "swish"), gelu.NAMES) if activation in names), (activation,))
    config.require("hidden_act", alike, activation)
    heads = Heads(config, n_kv_heads=n_kv_heads, head_dim=head_dim)
    rope = rope or read_rope(config)
    if rope.n_rotated(heads.head_dim) % 2 or rope.n_rotated(heads.head_dim) == 0:
        raise FormatError(
            config.path,
            f"partial_rotary_factor {rope.share:g} of a head_dim of {heads.head_dim} is "
            f"{rope.n_rotated(heads.head_dim)}; rotary embedding needs pairs",
        )
    return HParams(
        n_layers=config.integer("num_hidden_layers"),
        n_embd=config.integer("hidden_size"),
        n_ff=config.integer("intermediate_size"),
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        n_vocab=config.integer("vocab_size"),
        n_context=config.integer("max_position_embeddings", n_context),
        rms_eps=None if layer_norm_eps else config.number("rms_norm_eps", rms_eps),
        norm_eps=config.number(layer_norm_eps, 1e-5) if layer_norm_eps else None,
        rope=rope,
        tied_embeddings=config.boolean("tie_word_embeddings", tied),
        attention_bias=config.boolean("attention_bias", False),
        mlp_bias=config.boolean("mlp_bias", False),
    )


def write_decoder(h: HParams, *, layer_norm_eps: str | None = None, activation: str = "silu") -> dict[str, Any]:
    """`read_decoder` backwards, with the same arguments."""
    epsilon = {layer_norm_eps: h.norm_eps} if layer_norm_eps else {"rms_norm_eps": h.rms_eps}
    return {
        "vocab_size": h.n_vocab,
        "hidden_size": h.n_embd,
        "intermediate_size": h.n_ff,
        "num_hidden_layers": h.n_layers,
        "num_attention_heads": h.n_heads,
        "num_key_value_heads": h.n_kv_heads,
        "head_dim": h.head_dim,
        "hidden_act": activation,
        "max_position_embeddings": h.n_context,
        **epsilon,
        **(write_rope(h.rope) or {"rope_theta": _THETA}),
        "tie_word_embeddings": h.tied_embeddings,
        "attention_bias": h.attention_bias,
        "mlp_bias": h.mlp_bias,
    }


def extra_integer(h: HParams, key: str) -> int | None:
    """A number that only files of this family state; None if there is none, or something else."""
    found = h.extra.get(key)
    return found.data if found is not None and isinstance(found.data, int) else None


def write_without_biases(h: HParams) -> dict[str, Any]:
    """`write_decoder` for a family whose config has no switches for biases."""
    return {key: value for key, value in write_decoder(h).items() if key not in ("attention_bias", "mlp_bias")}


def read_experts(
    config: ConfigReader,
    *,
    n_experts: int,
    n_used: int,
    n_ff: int | None = None,
    n_ff_shared: int | None = None,
) -> Experts:
    """What most mixtures' config.json states, in either of the spellings of the number of experts.

    The arguments are what a missing key means; n_ff and n_ff_shared: None if the family has no such key. Raises
    FormatError for more experts chosen than there are.
    """
    key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    found = Experts(
        n_experts=config.integer(key, n_experts),
        n_used=config.integer("num_experts_per_tok", n_used),
        n_ff=None if n_ff is None else config.integer("moe_intermediate_size", n_ff),
        n_ff_shared=(None if n_ff_shared is None else config.integer("shared_expert_intermediate_size", n_ff_shared)),
    )
    if found.n_used > found.n_experts:
        raise FormatError(config.path, f"num_experts_per_tok {found.n_used} is more than {key} {found.n_experts}")
    return found


def write_experts(h: HParams) -> dict[str, Any]:
    """`read_experts` backwards, without the widths that the family has no keys for."""
    experts = experts_of(h)
    found = {
        "num_experts": experts.n_experts,
        "num_experts_per_tok": experts.n_used,
        "moe_intermediate_size": experts.n_ff,
        "shared_expert_intermediate_size": experts.n_ff_shared,
    }
    return {key: value for key, value in found.items() if value is not None}


def has_experts(h: HParams) -> bool:
    """Whether the model is a mixture of experts."""
    return h.experts is not None


def require_experts_everywhere(config: ConfigReader, n_layers: int) -> None:
    """Refuse a mixture of which some blocks have an ordinary MLP, for a graph that has experts in all of them."""
    config.require("decoder_sparse_step", (1,), 1)
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(not isinstance(i, int) or 0 <= i < n_layers for i in dense):
        raise UnsupportedError(
            f"{config.path}: mlp_only_layers is {excerpt(dense)}; this architecture is computed with experts in "
            "every block only"
        )


def require_heads_of_full_width(config: ConfigReader, h: HParams) -> None:
    """Refuse heads that are not the width of the model shared out, for a graph that has no other."""
    if queries(h) != h.n_embd:
        raise UnsupportedError(
            f"{config.path}: head_dim {h.head_dim}; this architecture is computed with hidden_size / "
            f"num_attention_heads = {h.n_embd / h.n_heads:g} only"
        )


def unused_window(window: object, h: HParams) -> tuple[str, ...]:
    """A note for a graph that has no sliding `window`, as config.json states it; what it computes differs beyond."""
    if isinstance(window, int) and 0 < window < h.n_context:
        return (f"sliding_window {window} is not carried over: llama.cpp attends to the whole context",)
    return ()
