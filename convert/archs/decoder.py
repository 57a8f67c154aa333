"""What most decoders' config.json states, under the keys that most of them use: read, checked and written back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from llmkit.convert.archs import blocks, gelu
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import Experts, HParams
from llmkit.convert.archs.rope import Rope, read_rope, write_rope
from llmkit.errors import FormatError, UnsupportedError

# What `layer_types` calls blocks with a sliding window and without.
SLIDING: Final = "sliding_attention"
FULL: Final = "full_attention"
_THETA: Final = 10000.0  # llama.cpp's, where a file says nothing


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
    if blocks.queries(h) != h.n_embd:
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
        return all_but_every(every, n_layers)
    layers = named_layers(names, n_layers)
    if layers is None:
        raise FormatError(
            config.path,
            f"layer_types must be a list of {n_layers} names, {SLIDING} or {FULL}, found {excerpt(names)}",
        )
    return layers


def named_layers(names: object, n_layers: int) -> tuple[bool, ...] | None:
    """For each block whether `names`, the value of `layer_types`, has it slide; None if these are no such names."""
    if not isinstance(names, list) or len(names) != n_layers or any(name not in (SLIDING, FULL) for name in names):
        return None
    return tuple(name == SLIDING for name in names)


def all_but_every(every: int, n_layers: int) -> tuple[bool, ...]:
    """For each block whether it has a sliding window, where every `every`-th one has none."""
    return tuple((i + 1) % every != 0 for i in range(n_layers))


def write_sliding_layers(layers: tuple[bool, ...]) -> dict[str, Any]:
    """`read_sliding_layers` backwards."""
    return {"layer_types": [SLIDING if sliding else FULL for sliding in layers]}


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
    experts = blocks.experts_of(h)
    found = {
        "num_experts": experts.n_experts,
        "num_experts_per_tok": experts.n_used,
        "moe_intermediate_size": experts.n_ff,
        "shared_expert_intermediate_size": experts.n_ff_shared,
    }
    return {key: value for key, value in found.items() if value is not None}


def require_experts_everywhere(config: ConfigReader, n_layers: int) -> None:
    """Refuse a mixture of which some blocks have an ordinary MLP, for a graph that has experts in all of them."""
    config.require("decoder_sparse_step", (1,), 1)
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(not isinstance(i, int) or 0 <= i < n_layers for i in dense):
        raise UnsupportedError(
            f"{config.path}: mlp_only_layers is {excerpt(dense)}; this architecture is computed with experts in "
            "every block only"
        )


def with_window(config: ConfigReader, h: HParams, default: int | None = None) -> HParams:
    """The sliding window of all blocks, if there is one: `default` is for a config.json without the key."""
    window = config.values.get("sliding_window", default)
    return replace(h, sliding_window=window) if isinstance(window, int) and window > 0 else h


def with_windows_of_some(config: ConfigReader, h: HParams) -> HParams:
    """The sliding window, where it is on, of the blocks that `layer_types` lists, or from max_window_layers on."""
    window = config.values.get("sliding_window", 4096)
    if not config.boolean("use_sliding_window", False) or not isinstance(window, int):
        return h
    layers = named_layers(config.values.get("layer_types"), h.n_layers)
    if layers is None:
        first = config.integer("max_window_layers", 28)
        layers = tuple(i >= first for i in range(h.n_layers))
    return replace(h, sliding_window=window, sliding_layers=layers)


def unused_window(window: object, h: HParams) -> tuple[str, ...]:
    """A note for a graph that has no sliding `window`, as config.json states it; what it computes differs beyond."""
    if isinstance(window, int) and 0 < window < h.n_context:
        return (f"sliding_window {window} is not carried over: llama.cpp attends to the whole context",)
    return ()
