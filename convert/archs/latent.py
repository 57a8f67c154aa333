"""Multi-head latent attention (DeepSeek-V2): its hyper-parameters, GGUF keys and tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmkit.convert.archs import blocks
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams, LacksPartError, LatentAttention
from llmkit.convert.archs.rules import Source, TensorRule, tensor, when
from llmkit.convert.transforms import View
from llmkit.errors import FormatError
from llmkit.formats.gguf import Value, u32


def read_latent(
    config: ConfigReader, *, q_rank: int, kv_rank: int, n_plain: int, n_rotated: int, n_values: int
) -> LatentAttention:
    """The sizes of latent attention; the arguments are for a config.json that leaves them out.

    A `q_lora_rank` of null means that queries are projected directly.
    """
    n_heads = config.integer("num_attention_heads")
    n_kv_heads = config.integer("num_key_value_heads", n_heads)
    if n_kv_heads != n_heads:
        raise FormatError(
            config.path,
            f"num_key_value_heads {n_kv_heads} is not num_attention_heads {n_heads}; latent attention has keys and "
            "values for every head",
        )
    direct = config.values.get("q_lora_rank", q_rank) is None
    latent = LatentAttention(
        q_rank=None if direct else config.integer("q_lora_rank", q_rank),
        kv_rank=config.integer("kv_lora_rank", kv_rank),
        n_plain=config.integer("qk_nope_head_dim", n_plain),
        n_rotated=config.integer("qk_rope_head_dim", n_rotated),
        n_values=config.integer("v_head_dim", n_values),
    )
    if latent.n_rotated % 2:
        raise FormatError(config.path, f"qk_rope_head_dim {latent.n_rotated} is odd; rotary embedding needs pairs")
    return latent


def rank_keys(latent: LatentAttention) -> dict[str, Value]:
    """The keys that state the ranks. 0 says that queries have none: llama.cpp requires the key."""
    return {
        "attention.q_lora_rank": u32(latent.q_rank or 0),
        "attention.kv_lora_rank": u32(latent.kv_rank),
    }


def write_latent(h: HParams) -> dict[str, Any]:
    """`read_latent` backwards."""
    latent = latent_of(h)
    return {
        "num_key_value_heads": h.n_heads,
        "q_lora_rank": latent.q_rank,
        "kv_lora_rank": latent.kv_rank,
        "qk_nope_head_dim": latent.n_plain,
        "qk_rope_head_dim": latent.n_rotated,
        "v_head_dim": latent.n_values,
    }


def latent_of(h: HParams) -> LatentAttention:
    """The latent attention of a model that has it."""
    if h.latent is None:
        raise LacksPartError("latent attention")
    return h.latent


def _width(size: Callable[[LatentAttention], int]) -> blocks.Size:
    return lambda h: size(latent_of(h))


def _all_heads(size: Callable[[LatentAttention], int]) -> blocks.Size:
    return lambda h: h.n_heads * size(latent_of(h))


def _q_rank(h: HParams) -> int:
    return latent_of(h).q_rank or 0


def _per_head(h: HParams, stored: View) -> View:
    """kv_b_proj with its rows by head: [heads, those of the plain keys and then those of the values, kv_rank]."""
    latent = latent_of(h)
    return stored.split(0, h.n_heads, latent.n_plain + latent.n_values)


def _plain_keys(h: HParams, stored: View) -> View:
    return _per_head(h, stored).part(1, 0, latent_of(h).n_plain).swap(1, 2)


def _values(h: HParams, stored: View) -> View:
    return _per_head(h, stored).part(1, latent_of(h).n_plain)


def expansion(prefix: str = blocks.ATTENTION) -> tuple[TensorRule, ...]:
    """What makes keys and values from the latent numbers, in one matrix."""
    rows = _all_heads(lambda a: a.n_plain + a.n_values)
    return blocks.linear("attn_kv_b", rows, _width(lambda a: a.kv_rank), prefix + "kv_b_proj")


def absorbed_expansion(prefix: str = blocks.ATTENTION) -> tuple[TensorRule, ...]:
    """The same for a graph that attends to the latent numbers themselves.

    It takes queries to them, by each head's keys transposed, and what comes out from them to values.
    """

    def stored(h: HParams) -> tuple[int, ...]:
        latent = latent_of(h)
        return (h.n_heads * (latent.n_plain + latent.n_values), latent.kv_rank)

    def keys(h: HParams) -> tuple[int, ...]:
        return (h.n_heads, latent_of(h).kv_rank, latent_of(h).n_plain)

    def values(h: HParams) -> tuple[int, ...]:
        return (h.n_heads, latent_of(h).n_values, latent_of(h).kv_rank)

    name = prefix + "kv_b_proj.weight"
    return (
        tensor("attn_k_b.weight", keys, Source(name, stored=stored, view=_plain_keys)),
        tensor("attn_v_b.weight", values, Source(name, stored=stored, view=_values)),
    )


def latent_attention(
    expand: Callable[[str], tuple[TensorRule, ...]], prefix: str = blocks.ATTENTION
) -> tuple[TensorRule, ...]:
    """The projections to queries and to latent numbers, `expand` these, and back."""
    from_rank = when(lambda h: latent_of(h).q_rank is not None)
    direct = when(lambda h: latent_of(h).q_rank is None)
    kv_rank = _width(lambda a: a.kv_rank)
    rows = _all_heads(lambda a: a.n_keys)
    return (
        *blocks.linear("attn_q", rows, blocks.embd, prefix + "q_proj", presence=direct),
        *blocks.linear("attn_q_a", _q_rank, blocks.embd, prefix + "q_a_proj", presence=from_rank),
        *blocks.norm("attn_q_a_norm", prefix + "q_a_layernorm", width=_q_rank, presence=from_rank),
        *blocks.linear("attn_q_b", rows, _q_rank, prefix + "q_b_proj", presence=from_rank),
        *blocks.linear(
            "attn_kv_a_mqa", _width(lambda a: a.kv_rank + a.n_rotated), blocks.embd, prefix + "kv_a_proj_with_mqa"
        ),
        *blocks.norm("attn_kv_a_norm", prefix + "kv_a_layernorm", width=kv_rank),
        *expand(prefix),
        *blocks.linear("attn_output", blocks.embd, _all_heads(lambda a: a.n_values), prefix + "o_proj"),
    )
