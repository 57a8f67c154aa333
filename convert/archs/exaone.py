"""EXAONE 3.0 and 3.5: Llama's computation under GPT-2's names."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import read_rope
from llmkit.convert.archs.rules import Family

_BLOCK = "transformer.h.{i}."
_ATTENTION = _BLOCK + "attn.attention."
_MLP = _BLOCK + "mlp."


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of the published ExaoneConfig."""
    config.require("activation_function", ("silu", "swish"), "silu")
    heads = decoder.Heads(config)
    return HParams(
        n_layers=config.integer("num_layers"),
        n_embd=config.integer("hidden_size"),
        n_ff=config.integer("intermediate_size", 4 * config.integer("hidden_size")),
        n_heads=heads.n_heads,
        n_kv_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        n_vocab=config.integer("vocab_size"),
        n_context=config.integer("max_position_embeddings", 2048),
        rms_eps=config.number("layer_norm_epsilon", 1e-5),
        rope=read_rope(config),
        tied_embeddings=config.boolean("tie_word_embeddings", False),
    )


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    found = decoder.write_decoder(h)
    names = {
        "num_hidden_layers": "num_layers",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    }
    return {names.get(key, key): value for key, value in found.items()}


FAMILY = Family(
    model_type="exaone",
    architectures=("ExaoneForCausalLM",),
    gguf_architecture="exaone",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding("transformer.wte"),
        *blocks.norm("attn_norm", _BLOCK + "ln_1"),
        *blocks.attention(_ATTENTION, output="out_proj"),
        *blocks.norm("ffn_norm", _BLOCK + "ln_2"),
        *blocks.linear("ffn_gate", blocks.ff, blocks.embd, _MLP + "c_fc_0"),
        *blocks.linear("ffn_up", blocks.ff, blocks.embd, _MLP + "c_fc_1"),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, _MLP + "c_proj"),
        *blocks.norm("output_norm", "transformer.ln_f"),
        *blocks.head(),
    ),
    # The rotary frequencies follow from rope_theta.
    unused=(r"transformer\.(h\.\d+\.attn\.attention\.)?rotary(_emb)?\.inv_freq",),
)
