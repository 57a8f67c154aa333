"""Llama 1 to 3.x, and what shares its architecture: TinyLlama, SmolLM, SmolLM2, Vicuna, Yi, ..."""

from __future__ import annotations

from llmkit.convert.archs.base import ConfigReader, Family, HParams, InterleaveHalves, Presence, TensorRule
from llmkit.errors import FormatError


def read_hparams(config: ConfigReader) -> HParams:
    """Hyper-parameters; what config.json leaves out has the default of transformers' LlamaConfig."""
    return read_decoder_hparams(config, n_kv_heads=None, n_context=2048)


def read_decoder_hparams(config: ConfigReader, *, n_kv_heads: int | None, n_context: int) -> HParams:
    """Shared by the families of this shape.

    `n_kv_heads` counts where config.json lacks num_key_value_heads; None, there or here, means as many as query heads.
    """
    config.require("hidden_act", ("silu", "swish"), "silu")
    n_embd = config.integer("hidden_size")
    n_heads = config.integer("num_attention_heads")
    default_kv_heads = n_heads if n_kv_heads is None or "num_key_value_heads" in config.values else n_kv_heads
    kv_heads = config.integer("num_key_value_heads", default_kv_heads)
    if "head_dim" not in config and n_embd % n_heads:
        raise FormatError(config.path, f"hidden_size {n_embd} is not divisible by num_attention_heads {n_heads}")
    head_dim = config.integer("head_dim", n_embd // n_heads)
    if n_heads % kv_heads:
        raise FormatError(
            config.path, f"num_attention_heads {n_heads} is not divisible by num_key_value_heads {kv_heads}"
        )
    if head_dim % 2:
        raise FormatError(config.path, f"head_dim {head_dim} is odd; rotary embedding needs pairs")
    return HParams(
        n_layers=config.integer("num_hidden_layers"),
        n_embd=n_embd,
        n_ff=config.integer("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        n_vocab=config.integer("vocab_size"),
        n_context=config.integer("max_position_embeddings", n_context),
        rms_eps=config.number("rms_norm_eps", 1e-6),
        rope=config.rope(),
        tied_embeddings=config.boolean("tie_word_embeddings", False),
        attention_bias=config.boolean("attention_bias", False),
        mlp_bias=config.boolean("mlp_bias", False),
    )


def _interleave(h: HParams) -> InterleaveHalves:
    return InterleaveHalves(h.head_dim)


def _attention_bias(h: HParams) -> Presence:
    return Presence.REQUIRED if h.attention_bias else Presence.ABSENT


def _mlp_bias(h: HParams) -> Presence:
    return Presence.REQUIRED if h.mlp_bias else Presence.ABSENT


def _untied(h: HParams) -> Presence:
    return Presence.OPTIONAL if h.tied_embeddings else Presence.REQUIRED


_ATTN = "model.layers.{i}.self_attn."
_MLP = "model.layers.{i}.mlp."

TENSORS = (
    TensorRule("model.embed_tokens.weight", "token_embd", lambda h: (h.n_vocab, h.n_embd)),
    TensorRule("model.layers.{i}.input_layernorm.weight", "attn_norm", lambda h: (h.n_embd,)),
    TensorRule(_ATTN + "q_proj.weight", "attn_q", lambda h: (h.n_heads * h.head_dim, h.n_embd), _interleave),
    TensorRule(_ATTN + "q_proj.bias", "attn_q", lambda h: (h.n_heads * h.head_dim,), _interleave, _attention_bias),
    TensorRule(_ATTN + "k_proj.weight", "attn_k", lambda h: (h.n_kv_heads * h.head_dim, h.n_embd), _interleave),
    TensorRule(_ATTN + "k_proj.bias", "attn_k", lambda h: (h.n_kv_heads * h.head_dim,), _interleave, _attention_bias),
    TensorRule(_ATTN + "v_proj.weight", "attn_v", lambda h: (h.n_kv_heads * h.head_dim, h.n_embd)),
    TensorRule(_ATTN + "v_proj.bias", "attn_v", lambda h: (h.n_kv_heads * h.head_dim,), presence=_attention_bias),
    TensorRule(_ATTN + "o_proj.weight", "attn_output", lambda h: (h.n_embd, h.n_heads * h.head_dim)),
    TensorRule(_ATTN + "o_proj.bias", "attn_output", lambda h: (h.n_embd,), presence=_attention_bias),
    TensorRule("model.layers.{i}.post_attention_layernorm.weight", "ffn_norm", lambda h: (h.n_embd,)),
    TensorRule(_MLP + "gate_proj.weight", "ffn_gate", lambda h: (h.n_ff, h.n_embd)),
    TensorRule(_MLP + "gate_proj.bias", "ffn_gate", lambda h: (h.n_ff,), presence=_mlp_bias),
    TensorRule(_MLP + "up_proj.weight", "ffn_up", lambda h: (h.n_ff, h.n_embd)),
    TensorRule(_MLP + "up_proj.bias", "ffn_up", lambda h: (h.n_ff,), presence=_mlp_bias),
    TensorRule(_MLP + "down_proj.weight", "ffn_down", lambda h: (h.n_embd, h.n_ff)),
    TensorRule(_MLP + "down_proj.bias", "ffn_down", lambda h: (h.n_embd,), presence=_mlp_bias),
    TensorRule("model.norm.weight", "output_norm", lambda h: (h.n_embd,)),
    TensorRule("lm_head.weight", "output", lambda h: (h.n_vocab, h.n_embd), presence=_untied),
)

FAMILY = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    gguf_architecture="llama",
    read_hparams=read_hparams,
    tensors=TENSORS,
    # Older checkpoints store the rotary frequencies, which follow from rope_theta.
    unused=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
)
