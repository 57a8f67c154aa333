"""Settings of config classes that several rows of the table of families share."""

from __future__ import annotations

from typing import Any, Final

from parities.row import SIZES

# Latent attention and experts as both versions of DeepSeek have them, small.
DEEPSEEK: Final[dict[str, Any]] = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}


def deepseek_yarn(**more: float) -> dict[str, Any]:
    """YaRN as DeepSeek has it, with a context that a short text exceeds."""
    return {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        **more,
    }


LLAMA3: Final[dict[str, Any]] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


NO_ATTENTION: Final[dict[str, Any]] = {
    **dict.fromkeys(("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")),
    "state_size": 16,
}


# Mixtures: more experts than are used, of a width of their own where the family has one.
MIXTURE: Final = {"num_local_experts": 6, "num_experts_per_tok": 2}


SHARED: Final = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 80,
}


MANY: Final = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "norm_topk_prob": True,
    "head_dim": 32,
}


GRANITE: Final = {  # none the default, and attention apart from 1/sqrt(16)
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}


GRANITE_4: Final = {
    **GRANITE,
    "layer_types": ["full_attention"] * SIZES["num_hidden_layers"],
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
}


GRANITE_MOE: Final = {**GRANITE, "num_local_experts": 6, "num_experts_per_tok": 3}


YARN: Final = {
    "rope_type": "yarn",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}


GLM: Final = {"head_dim": 16, "rope_parameters": {"rope_theta": 50000.0, "partial_rotary_factor": 0.5}}


GEMMA3: Final[dict[str, Any]] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "num_hidden_layers": 7,  # the sixth attends to everything
    "sliding_window": 16,
    "final_logit_softcapping": 5.0,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    },
}


# One factor for each of the 8 pairs of dimensions that are rotated.
LONGROPE: Final[dict[str, Any]] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0],
}


ENCODER: Final[dict[str, Any]] = {"num_key_value_heads": None}


# Sizes under GPT-2's names; the peer reads n_ctx, which transformers 5 no longer writes.
GPT2: Final[dict[str, Any]] = {
    **dict.fromkeys(SIZES),
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "n_ctx": 512,
}


# The peer writes these sizes of the MLP and the context, whatever config.json says.
FALCON: Final[dict[str, Any]] = {
    "num_key_value_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": 2048,
}


GPT_OSS: Final[dict[str, Any]] = {
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 24,
    "num_hidden_layers": 3,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": True,  # published ones say false, which llama.cpp does not compute
        "original_max_position_embeddings": 512,
    },
}


# A window of 16 tokens on either side shows in 64.
MODERNBERT: Final[dict[str, Any]] = {
    **ENCODER,
    "num_hidden_layers": 5,
    "local_attention": 32,
    "pad_token_id": 0,
    "cls_token_id": None,
    "sep_token_id": None,
}
