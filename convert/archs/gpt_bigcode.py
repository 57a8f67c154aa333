"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one key and one value for all heads, and matrices not transposed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, gpt2
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rules import Family, required
from llmkit.convert.transforms import View


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' GPTBigCodeConfig."""
    hparams = gpt2.read_gpt(config)
    return replace(hparams, n_kv_heads=1) if config.boolean("multi_query", True) else hparams


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**gpt2.write_gpt(h), "activation_function": "gelu_pytorch_tanh", "multi_query": h.n_kv_heads == 1}


def _queries_first(h: HParams, stored: View) -> View:
    """Models with one key stand as wanted, others head after head."""
    return stored if h.n_kv_heads == 1 else blocks.three_per_head(h, stored)


TENSORS = (
    *gpt2.embeddings(),
    *blocks.layer_norm("attn_norm", gpt2.BLOCK + "ln_1"),
    *blocks.fused_attention(gpt2.BLOCK + "attn.c_attn", gpt2.BLOCK + "attn.c_proj", view=_queries_first, bias=required),
    *blocks.layer_norm("ffn_norm", gpt2.BLOCK + "ln_2"),
    *blocks.mlp(gpt2.BLOCK + "mlp.c_fc", gpt2.BLOCK + "mlp.c_proj", bias=required),
    *blocks.layer_norm("output_norm", "transformer.ln_f"),
    *blocks.head(),
)

FAMILY = Family(
    model_type="gpt_bigcode",
    architectures=("GPTBigCodeForCausalLM",),
    gguf_architecture="starcoder",
    read_hparams=read_hparams,
    tensors=TENSORS,
    unused=gpt2.FAMILY.unused,
    prefixes=gpt2.FAMILY.prefixes,
    notes=gpt2.notes,
    write_config=write_config,
)
