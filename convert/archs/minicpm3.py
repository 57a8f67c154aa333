"""MiniCPM3: MiniCPM with latent attention."""

from __future__ import annotations

from typing import Any, Final

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.latent import expansion, latent_attention, rank_keys, read_latent, write_latent
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family
from llmkit.errors import UnsupportedError
from llmkit.formats.gguf import u32

# llama.cpp's graph has these numbers in it.
_SCALES: Final = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' MiniCPM3Config."""
    config.require("hidden_act", ("silu", "swish"), "silu")
    for key, value in _SCALES.items():
        if config.number(key, value) != value:
            raise UnsupportedError(
                f"{config.path}: {key} is {config.number(key):g}; llama.cpp computes this architecture with {value:g} "
                "only"
            )
    n_embd = config.integer("hidden_size")
    n_heads = config.integer("num_attention_heads")
    latent = read_latent(config, q_rank=768, kv_rank=256, n_plain=64, n_rotated=32, n_values=max(1, n_embd // n_heads))
    if latent.q_rank is None:
        raise UnsupportedError(
            f"{config.path}: q_lora_rank is null; llama.cpp computes this architecture with a rank only"
        )
    rope = read_rope(config)
    if rope.parameters.get("mscale_all_dim"):
        raise UnsupportedError(
            f"{config.path}: rope scaling with mscale_all_dim, which llama.cpp does not compute here"
        )
    return HParams(
        n_layers=config.integer("num_hidden_layers"),
        n_embd=n_embd,
        n_ff=config.integer("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=latent.n_rotated,
        n_vocab=config.integer("vocab_size"),
        n_context=config.integer("max_position_embeddings", 32768),
        rms_eps=config.number("rms_norm_eps", 1e-5),
        rope=rope,
        tied_embeddings=config.boolean("tie_word_embeddings", True),
        latent=latent,
        extra={
            **rank_keys(latent),
            "attention.key_length": u32(latent.n_keys),
            "attention.value_length": u32(latent.n_values),
        },
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    return {**decoder.write_decoder(h), **write_latent(h), **_SCALES}


FAMILY = Family(
    model_type="minicpm3",
    architectures=("MiniCPM3ForCausalLM",),
    gguf_architecture="minicpm3",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding(),
        *blocks.norm("attn_norm", "model.layers.{i}.input_layernorm"),
        *latent_attention(expansion),
        *blocks.norm("ffn_norm", "model.layers.{i}.post_attention_layernorm"),
        *blocks.gated_mlp(),
        *blocks.norm("output_norm", "model.norm"),
        *blocks.head(),
    ),
)
