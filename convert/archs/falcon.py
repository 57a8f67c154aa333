"""Falcon 7B, 11B, 40B and 180B: attention and MLP side by side, few keys and values."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, gelu
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope, write_rope
from llmkit.convert.archs.rules import Family, when
from llmkit.convert.transforms import View
from llmkit.errors import FormatError
from llmkit.formats.gguf import string

_BLOCK = "transformer.h.{i}."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' FalconConfig.

    The models' first own code (RWForCausalLM) had names of its own.
    """
    config.require("activation", gelu.NAMES, "gelu")
    config.require_boolean("alibi", False)
    config.require_boolean("bias", False)
    config.require_boolean("parallel_attn", True)
    n_embd = config.integer("hidden_size", 4544)
    n_heads = config.integer(_newer(config, "num_attention_heads", "n_head"), 71)
    head_dim, left = divmod(n_embd, n_heads)
    if left or head_dim % 2:
        raise FormatError(
            config.path, f"hidden_size {n_embd} does not make num_attention_heads {n_heads} of an even width"
        )
    is_grouped = _is_grouped(config)
    return HParams(
        n_layers=config.integer(_newer(config, "num_hidden_layers", "n_layer"), 32),
        n_embd=n_embd,
        n_ff=config.integer("ffn_hidden_size", 4 * n_embd),
        n_heads=n_heads,
        n_kv_heads=_n_kv_heads(config, n_heads, is_grouped),
        head_dim=head_dim,
        n_vocab=config.integer("vocab_size", 65024),
        n_context=config.integer("max_position_embeddings", 2048),
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        rope=read_rope(config).without_factors(),
        tied_embeddings=config.boolean("tie_word_embeddings", True),
        n_parallel_norms=config.integer("num_ln_in_parallel_attn", 2, maximum=2) if is_grouped else 1,
        # The name that the order of queries, keys and values goes by in files of this architecture.
        extra={"tensor_data_layout": string("jploski")},
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards; files do not say which GELU it is."""
    is_grouped = h.n_kv_heads != 1 or h.n_parallel_norms != 1
    return {
        "vocab_size": h.n_vocab,
        "hidden_size": h.n_embd,
        "ffn_hidden_size": h.n_ff,
        "num_hidden_layers": h.n_layers,
        "num_attention_heads": h.n_heads,
        "num_kv_heads": h.n_kv_heads,
        "max_position_embeddings": h.n_context,
        "layer_norm_epsilon": h.norm_eps,
        **write_rope(h.rope),
        "tie_word_embeddings": h.tied_embeddings,
        "activation": "gelu",
        "alibi": False,
        "bias": False,
        "multi_query": True,
        "parallel_attn": True,
        # A key for each head, which the older one has too, is a group for each.
        "new_decoder_architecture": is_grouped,
        **({"num_ln_in_parallel_attn": h.n_parallel_norms} if is_grouped else {}),
    }


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """How llama.cpp's GELU differs."""
    return gelu.notes(config, "activation", "gelu")


def _newer(config: ConfigReader, key: str, older: str) -> str:
    return older if older in config and key not in config else key


def _is_grouped(config: ConfigReader) -> bool:
    """Whether queries stand in groups with the key and the value that they share, as since the 40B model."""
    if "new_decoder_architecture" in config:
        return config.boolean("new_decoder_architecture", False)
    return config.values.get("model_type") == "RefinedWeb"


def _n_kv_heads(config: ConfigReader, n_heads: int, is_grouped: bool) -> int:
    if not is_grouped:
        # Whatever num_kv_heads says, which transformers does not look at then.
        return 1 if config.boolean("multi_query", True) else n_heads
    n_kv_heads = config.integer(_newer(config, "num_kv_heads", "n_head_kv"), n_heads)
    if n_heads % n_kv_heads:
        raise FormatError(config.path, f"num_attention_heads {n_heads} is not divisible by num_kv_heads {n_kv_heads}")
    return n_kv_heads


def _queries_first(h: HParams, stored: View) -> tuple[View, ...]:
    """From groups of queries, each with its key and value behind, to all queries, all keys, all values."""
    groups = stored.split(0, h.n_kv_heads, -1, h.head_dim)
    return groups.part(1, 0, -2), groups.at(1, -2), groups.at(1, -1)


_has_two_norms = when(lambda h: h.n_parallel_norms == 2)
_has_one_norm = when(lambda h: h.n_parallel_norms == 1)

TENSORS = (
    *blocks.embedding("transformer.word_embeddings"),
    # The graph has one norm for the MLP, and for attention unless there is another.
    *blocks.norm("attn_norm", _BLOCK + "input_layernorm", presence=_has_one_norm, bias=_has_one_norm),
    *blocks.norm("attn_norm_2", _BLOCK + "ln_attn", presence=_has_two_norms, bias=_has_two_norms),
    *blocks.norm("attn_norm", _BLOCK + "ln_mlp", presence=_has_two_norms, bias=_has_two_norms),
    *blocks.fused_attention(
        _BLOCK + "self_attention.query_key_value", _BLOCK + "self_attention.dense", view=_queries_first
    ),
    *blocks.mlp(_BLOCK + "mlp.dense_h_to_4h", _BLOCK + "mlp.dense_4h_to_h"),
    *blocks.layer_norm("output_norm", "transformer.ln_f"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="falcon",
    architectures=("FalconForCausalLM", "RWForCausalLM"),
    gguf_architecture="falcon",
    read_hparams=read_hparams,
    tensors=TENSORS,
    unused=(r"transformer\.h\.\d+\.self_attention\.rotary(_emb)?\.inv_freq",),
    notes=notes,
    write_config=write_config,
)
