"""Nomic Embed: BERT with rotary positions, a gated MLP and no biases but those of norms."""

from __future__ import annotations

from typing import Any, Final

from llmkit.convert.archs import blocks, decoder, encoders
from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.pooling import read_pooling
from llmkit.convert.archs.rope import read_rope, write_rope
from llmkit.convert.archs.rules import Family, tensor
from llmkit.errors import FormatError, UnsupportedError

LAYER = "encoder.layers.{i}."

# What transformers calls the keys of the published config.json, which are GPT-2's.
_NEWER: Final = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
    "rotary_emb_fraction": "partial_rotary_factor",
    "max_trained_positions": "max_position_embeddings",
}
# Settings of the published code that llama.cpp's graph has fixed.
_FIXED: Final = {
    "activation_function": "swiglu",
    "causal": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_interleaved": False,
    "use_rms_norm": False,
}


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters, under the published names or those of transformers' NomicBertConfig.

    The published n_positions is what rotary scaling stretches the context to, which llama.cpp does not compute.
    """
    for key, value in _FIXED.items():
        if config.values.get(key, value) != value:
            raise FormatError(config.path, f"{key} is {excerpt(config.values[key])}; this architecture has {value}")
    if config.values.get("moe_every_n_layers") or config.values.get("num_experts"):
        raise UnsupportedError(f"{config.path}: moe_every_n_layers: Nomic's mixtures of experts are not converted yet")
    values = {_NEWER.get(key, key): value for key, value in config.values.items()}
    newer = ConfigReader(config.path, values)
    newer.require("hidden_act", ("silu", "swish"), "silu")
    heads = decoder.Heads(newer)
    return HParams(
        n_layers=newer.integer("num_hidden_layers"),
        n_embd=newer.integer("hidden_size"),
        n_ff=newer.integer("intermediate_size"),
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        n_vocab=newer.integer("vocab_size"),
        n_context=newer.integer("max_position_embeddings", 2048),
        norm_eps=newer.number("layer_norm_eps", 1e-12),
        rope=read_rope(newer, theta=1000.0),
        tied_embeddings=True,
        causal=False,
        n_token_types=newer.integer("type_vocab_size", 2),
        pooling=read_pooling(config.path.parent),
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards, under the names that transformers has."""
    return {
        **encoders.write_encoder(h),
        "head_dim": h.head_dim,
        "hidden_act": "silu",
        **write_rope(h.rope),
    }


FAMILY = Family(
    model_type="nomic_bert",
    architectures=("NomicBertModel", "NomicBertForPreTraining", "NomicBertForMaskedLM"),
    gguf_architecture="nomic-bert",
    read_hparams=read_hparams,
    tensors=(
        *blocks.embedding("embeddings.word_embeddings"),
        encoders.token_types(),
        *encoders.norm("token_embd_norm", "emb_ln"),
        tensor(
            "attn_qkv.weight",
            lambda h: (blocks.queries(h) + 2 * blocks.keys(h), h.n_embd),
            LAYER + "attn.Wqkv.weight",
        ),
        *blocks.linear("attn_output", blocks.embd, blocks.queries, LAYER + "attn.out_proj"),
        *encoders.norm("attn_output_norm", LAYER + "norm1"),
        *blocks.linear("ffn_up", blocks.ff, blocks.embd, LAYER + "mlp.fc11"),
        *blocks.linear("ffn_gate", blocks.ff, blocks.embd, LAYER + "mlp.fc12"),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, LAYER + "mlp.fc2"),
        *encoders.norm("layer_output_norm", LAYER + "norm2"),
    ),
    unused=encoders.UNUSED,
    prefixes=(("bert.", ""), ("nomic_bert.", ""), ("model.", "")),
    notes=encoders.notes,
    write_config=write_config,
)
