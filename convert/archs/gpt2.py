"""GPT-2: learned positions, LayerNorm, and matrices that checkpoints hold transposed."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, gelu
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, Source, tensor
from llmkit.errors import FormatError

BLOCK = "transformer.h.{i}."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GPT2Config."""
    config.require_boolean("scale_attn_by_inverse_layer_idx", False)
    return read_gpt(config)


def read_gpt(config: ConfigReader) -> HParams:
    """What GPT-2 and its relatives state, under the names that they have in common."""
    config.require("activation_function", gelu.NAMES, "gelu_new")
    config.require_boolean("scale_attn_weights", True)
    config.require_boolean("add_cross_attention", False)
    n_embd = config.integer("n_embd", 768)
    n_heads = config.integer("n_head", 12)
    if n_embd % n_heads:
        raise FormatError(config.path, f"n_embd {n_embd} is not divisible by n_head {n_heads}")
    return HParams(
        n_layers=config.integer("n_layer", 12),
        n_embd=n_embd,
        n_ff=config.integer("n_inner", 4 * n_embd),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=n_embd // n_heads,
        n_vocab=config.integer("vocab_size", 50257),
        n_context=config.integer("n_positions", 1024),
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        tied_embeddings=config.boolean("tie_word_embeddings", True),
    )


def notes(config: ConfigReader, hparams: HParams) -> tuple[str, ...]:
    """How llama.cpp's GELU differs."""
    return gelu.notes(config, "activation_function", "gelu_new")


def write_gpt(h: HParams) -> dict[str, Any]:
    """`read_gpt` backwards, but for the kind of GELU, which files do not say."""
    return {
        "vocab_size": h.n_vocab,
        "n_positions": h.n_context,
        "n_ctx": h.n_context,
        "n_embd": h.n_embd,
        "n_layer": h.n_layers,
        "n_head": h.n_heads,
        "n_inner": h.n_ff,
        "layer_norm_epsilon": h.norm_eps,
        "tie_word_embeddings": h.tied_embeddings,
    }


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**write_gpt(h), "activation_function": "gelu_new"}


def embeddings() -> blocks.Rules:
    """The embedding of tokens, and that of positions."""
    return (
        *blocks.embedding("transformer.wte"),
        *blocks.linear("position_embd", lambda h: h.n_context, blocks.embd, "transformer.wpe"),
    )


def _transposed(role: str, rows: blocks.Size, columns: blocks.Size, name: str) -> blocks.Rules:
    """What transformers calls Conv1D: a matrix stored as [columns, rows], and a bias."""
    stored = Source(f"{name}.weight", stored=lambda h: (columns(h), rows(h)), view=lambda h, stored: stored.swap(0, 1))
    return (
        tensor(f"{role}.weight", lambda h: (rows(h), columns(h)), stored),
        tensor(f"{role}.bias", lambda h: (rows(h),), f"{name}.bias"),
    )


TENSORS = (
    *embeddings(),
    *blocks.layer_norm("attn_norm", BLOCK + "ln_1"),
    *_transposed("attn_qkv", lambda h: 3 * h.n_embd, blocks.embd, BLOCK + "attn.c_attn"),
    *_transposed("attn_output", blocks.embd, blocks.embd, BLOCK + "attn.c_proj"),
    *blocks.layer_norm("ffn_norm", BLOCK + "ln_2"),
    *_transposed("ffn_up", blocks.ff, blocks.embd, BLOCK + "mlp.c_fc"),
    *_transposed("ffn_down", blocks.embd, blocks.ff, BLOCK + "mlp.c_proj"),
    *blocks.layer_norm("output_norm", "transformer.ln_f"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel",),
    gguf_architecture="gpt2",
    read_hparams=read_hparams,
    tensors=TENSORS,
    # The causal mask and what it masks with, which older checkpoints store.
    unused=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
    # Names in checkpoints of the model without a head, such as those that were published first.
    prefixes=tuple((name, f"transformer.{name}") for name in ("h.", "wte.", "wpe.", "ln_f.")),
    notes=notes,
    write_config=write_config,
)
