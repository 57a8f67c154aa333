"""GLM-4 of 2024 as first published, and ChatGLM 2 and 3: GLM with queries, keys and values in one matrix."""

from __future__ import annotations

from typing import Any

from llmkit.convert.archs import blocks, decoder
from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.archs.hparams import HParams
from llmkit.convert.archs.rope import Rope
from llmkit.convert.archs.rules import Family, when


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of the published ChatGLMConfig."""
    for key in ("rmsnorm", "post_layer_norm"):
        config.require_boolean(key, True)
    for key in ("apply_residual_connection_post_layernorm", "add_bias_linear"):
        config.require_boolean(key, False)
    n_heads = config.integer("num_attention_heads", 32)
    shares_keys = config.boolean("multi_query_attention", False)
    found = HParams(
        n_layers=config.integer("num_layers", 28),
        n_embd=config.integer("hidden_size", 4096),
        n_ff=config.integer("ffn_hidden_size", 13696),
        n_heads=n_heads,
        n_kv_heads=config.integer("multi_query_group_num", 1) if shares_keys else n_heads,
        head_dim=config.integer("kv_channels", 128),
        n_vocab=config.integer("padded_vocab_size", 65024),
        n_context=config.integer("seq_length", 2048),
        rms_eps=config.number("layernorm_epsilon", 1e-5),
        rope=Rope(config.path, 10000.0 * config.number("rope_ratio", 1.0), "default", {}, 0.5),
        tied_embeddings=config.boolean("tie_word_embeddings", False),
        attention_bias=config.boolean("add_qkv_bias", False),
    )
    return decoder.require_heads_of_model_width(config, found)


def write_config(h: HParams) -> dict[str, Any]:
    """`read_hparams` backwards."""
    assert h.rope is not None, "a file of this architecture rotates"
    return {
        "num_layers": h.n_layers,
        "hidden_size": h.n_embd,
        "ffn_hidden_size": h.n_ff,
        "num_attention_heads": h.n_heads,
        "multi_query_attention": h.n_kv_heads != h.n_heads,
        "multi_query_group_num": h.n_kv_heads,
        "kv_channels": h.head_dim,
        "padded_vocab_size": h.n_vocab,
        "seq_length": h.n_context,
        "layernorm_epsilon": h.rms_eps,
        "rope_ratio": h.rope.theta / 10000,
        "tie_word_embeddings": h.tied_embeddings,
        "add_qkv_bias": h.attention_bias,
        "add_bias_linear": False,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
        "rmsnorm": True,
    }


def _queries_keys_values(h: HParams) -> int:
    return blocks.queries(h) + 2 * blocks.keys(h)


LAYER = "transformer.encoder.layers.{i}."

FAMILY = Family(
    model_type="chatglm",
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    gguf_architecture="chatglm",
    read_hparams=read_hparams,
    write_config=write_config,
    tensors=(
        *blocks.embedding("transformer.embedding.word_embeddings"),
        *blocks.norm("attn_norm", LAYER + "input_layernorm"),
        *blocks.linear(
            "attn_qkv",
            _queries_keys_values,
            blocks.embd,
            LAYER + "self_attention.query_key_value",
            bias=when(lambda h: h.attention_bias),
        ),
        *blocks.linear("attn_output", blocks.embd, blocks.queries, LAYER + "self_attention.dense"),
        *blocks.norm("ffn_norm", LAYER + "post_attention_layernorm"),
        *blocks.linear("ffn_up", lambda h: 2 * h.n_ff, blocks.embd, LAYER + "mlp.dense_h_to_4h"),
        *blocks.linear("ffn_down", blocks.embd, blocks.ff, LAYER + "mlp.dense_4h_to_h"),
        *blocks.norm("output_norm", "transformer.encoder.final_layernorm"),
        *blocks.head("transformer.output_layer"),
    ),
    unused=(r"transformer\.rotary_pos_emb\.inv_freq",),
)
