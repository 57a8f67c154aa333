"""Command R: attention and MLP side by side, layer norms without bias, an embedding that is the output matrix too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import Rope, read_rope
from llmkit.convert.archs.rules import Family, tensor, when
from llmkit.formats.gguf import string

# llama.cpp expects norms of queries and keys in models of so many blocks, and in no others (src/models/command-r.cpp).
_QK_NORM_FROM = 64


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' CohereConfig."""
    # Command R states what it was trained on as model_max_length, and less as max_position_embeddings.
    n_context = config.integer("model_max_length", config.integer("max_position_embeddings", 8192))
    found = replace(
        read_without_context(config, read_rope(config, theta=500000.0)),
        n_context=n_context,
        qk_norm=config.boolean("use_qk_norm", False),
    )
    if found.qk_norm != (found.n_layers >= _QK_NORM_FROM):
        raise config.unsupported(
            "use_qk_norm",
            found.qk_norm,
            f"llama.cpp computes it in models of {_QK_NORM_FROM} blocks and more only; this has {found.n_layers}",
        )
    return found


def read_without_context(config: ConfigReader, rope: Rope) -> HParams:
    """Hyper-parameters that Command R and its successors share."""
    config.require_boolean("attention_bias", False)
    config.require_boolean("tie_word_embeddings", True)
    found = decoder.read_decoder(config, n_context=8192, rope=rope.without_factors(), tied=True)
    found = replace(
        found,
        rms_eps=None,
        norm_eps=config.number("layer_norm_eps", 1e-5),
        logit_scale=config.number("logit_scale", 0.0625),
        extra={"rope.scaling.type": string("none")} if rope.scaling == "default" else {},
    )
    return decoder.require_heads_of_model_width(config, found)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    found = {
        **decoder.write_decoder(h),
        "layer_norm_eps": h.norm_eps,
        "logit_scale": h.logit_scale,
        "use_qk_norm": h.qk_norm,
    }
    del found["rms_norm_eps"]
    return found


_has_qk_norm = when(lambda h: h.qk_norm)

TENSORS = (
    *blocks.embedding(),
    *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
    *blocks.attention(),
    tensor(
        "attn_q_norm.weight",
        lambda h: (h.n_heads, h.head_dim),
        blocks.ATTENTION + "q_norm.weight",
        presence=_has_qk_norm,
    ),
    tensor(
        "attn_k_norm.weight",
        lambda h: (h.n_kv_heads, h.head_dim),
        blocks.ATTENTION + "k_norm.weight",
        presence=_has_qk_norm,
    ),
    *blocks.gated_mlp(),
    *blocks.norm("output_norm", "model.norm"),
)

FAMILY = Family(
    model_type="cohere",
    architectures=("CohereForCausalLM",),
    gguf_architecture="command-r",
    read_hparams=read_hparams,
    tensors=TENSORS,
    write_config=write_config,
)
