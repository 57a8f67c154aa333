"""The table of families: what tiny model of each is compared.

A row names transformers' config class and what of it is not as in `SIZES`; transformers makes the model, random weights
are put in, and it saves the checkpoint that llmkit converts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from parities import published, rewrites
from parities.mxfp4 import pack_experts, round_experts
from parities.rewrites import Tensors, as_chatglm, with_older_layer_types

# Sizes of every model, under the names that most config classes have.
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Row:
    """A family, or a variation of one.

    config: transformers' config class. settings: what the class does not have from `SIZES`, or has otherwise; None
    leaves a size out. A multimodal model has sizes in its `text_config`. auto: transformers' class that loads it.
    spread: standard deviation of the matrices' weights, chosen for logits on a range of 1 to 10 and for attention that
    is not uniform. tokenizer: which of `tiny`'s. rewrite: for families that transformers does not have, makes their
    tensors and config from those of one that computes the same; or makes them as they were published. encoder: it has
    no logits, hidden states are compared. prepare: changes the model before it is saved and run.
    """

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    auto: str = "AutoModelForCausalLM"
    spread: float = 0.15
    tokenizer: str = "smollm2"
    rewrite: Callable[[Tensors, dict[str, Any]], tuple[Tensors, dict[str, Any]]] | None = None
    encoder: bool = False
    prepare: Callable[[Any], None] | None = None


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


def _deepseek_yarn(**more: float) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        **more,
    }


_LLAMA3: Final[dict[str, Any]] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

_NO_ATTENTION: Final[dict[str, Any]] = {
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


def join_experts(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """A mixture with its experts in one tensor, as transformers 5 holds them, from one with a tensor for each."""
    import torch

    joined: Tensors = {}
    experts: dict[str, dict[int, dict[str, Any]]] = {}
    parts = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for name, values in tensors.items():
        name = name.replace(".block_sparse_moe.", ".mlp.")
        if found := re.fullmatch(r"(.*\.experts\.)(\d+)\.(\w+)\.weight", name):
            expert = experts.setdefault(found[1], {}).setdefault(int(found[2]), {})
            expert[parts.get(found[3], found[3])] = values
        else:
            joined[name] = values
    assert experts, "no experts to join"
    for prefix, found_experts in experts.items():
        each = [found_experts[e] for e in range(len(found_experts))]
        joined[f"{prefix}gate_up_proj"] = torch.stack([torch.cat([e["gate_proj"], e["up_proj"]]) for e in each])
        joined[f"{prefix}down_proj"] = torch.stack([e["down_proj"] for e in each])
    return joined, config


_GRANITE: Final = {  # none the default, and attention apart from 1/sqrt(16)
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}

_GRANITE_4: Final = {
    **_GRANITE,
    "layer_types": ["full_attention"] * SIZES["num_hidden_layers"],
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
}

_GRANITE_MOE: Final = {**_GRANITE, "num_local_experts": 6, "num_experts_per_tok": 3}

_YARN: Final = {
    "rope_type": "yarn",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}

_GLM: Final = {"head_dim": 16, "rope_parameters": {"rope_theta": 50000.0, "partial_rotary_factor": 0.5}}

_GEMMA3: Final[dict[str, Any]] = {
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
_LONGROPE: Final[dict[str, Any]] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0],
}

_ENCODER: Final[dict[str, Any]] = {"num_key_value_heads": None}


def _gamma_and_beta(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The names of checkpoints that came from TensorFlow, below the name of the model, as those with a head have."""
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for newer, old in older.items():
            name = name.replace(newer, old)
        renamed[f"bert.{name}"] = tensor
    return renamed, {**config, "architectures": ["BertForMaskedLM"]}


def _published_nomic(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The config.json as published, with GPT-2's names; transformers saves the tensors under the published names."""
    return tensors, {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "activation_function": "swiglu",
        "causal": False,
        "layer_norm_epsilon": config["layer_norm_eps"],
        "max_trained_positions": 2048,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "n_embd": config["hidden_size"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_layer": config["num_hidden_layers"],
        "n_positions": 8192,
        "pad_vocab_size_multiple": 64,
        "parallel_block": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "type_vocab_size": config["type_vocab_size"],
        "use_rms_norm": False,
        "vocab_size": config["vocab_size"],
    }


Rewrite = Callable[[Tensors, dict[str, Any]], tuple[Tensors, dict[str, Any]]]

# Sizes under GPT-2's names; the peer reads n_ctx, which transformers 5 no longer writes.
_GPT2: Final[dict[str, Any]] = {
    **dict.fromkeys(SIZES),
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "n_ctx": 512,
}

# The peer writes these sizes of the MLP and the context, whatever config.json says.
_FALCON: Final[dict[str, Any]] = {
    "num_key_value_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": 2048,
}


def _gpt2_of_the_hub(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Names without the model's in front, and the causal masks among the tensors."""
    import torch

    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 512, 512).tril() for i in range(config["n_layer"])}
    return {**{name.removeprefix("transformer."): value for name, value in tensors.items()}, **masks}, config


def _neox_of_transformers_4(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    rope = config.pop("rope_parameters")
    return tensors, config | {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}


def _refined_web(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Falcon 40B as it was first published."""
    older = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    config = {older.get(key, key): value for key, value in config.items() if key != "new_decoder_architecture"}
    return tensors, config | {"architectures": ["RWForCausalLM"], "model_type": "RefinedWeb"}


_GPT_OSS: Final[dict[str, Any]] = {
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
_MODERNBERT: Final[dict[str, Any]] = {
    **_ENCODER,
    "num_hidden_layers": 5,
    "local_attention": 32,
    "pad_token_id": 0,
    "cls_token_id": None,
    "sep_token_id": None,
}


def _published_modernbert(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The keys of transformers 4, and the names below the model with a head that published checkpoints have."""
    newer = ("rope_parameters", "layer_types", "architectures")
    older = {
        "architectures": ["ModernBertForMaskedLM"],
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    }
    kept = {key: value for key, value in config.items() if key not in newer}
    return {f"model.{name}": tensor for name, tensor in tensors.items()}, {**kept, **older}


FAMILIES: Final[dict[str, Row]] = {
    "arcee": Row("ArceeConfig", {"rope_parameters": {**_YARN, "rope_theta": 10000.0, "mscale": 1.0}}),
    "bert": Row("BertConfig", _ENCODER, auto="AutoModel", tokenizer="minilm", encoder=True),
    "bert, older names": Row(
        "BertConfig", _ENCODER, auto="AutoModel", tokenizer="minilm", rewrite=_gamma_and_beta, encoder=True
    ),
    "chatglm": Row("GlmConfig", {**_GLM, "attention_bias": True}, tokenizer="glm", rewrite=as_chatglm),
    "cohere": Row("CohereConfig", {"tie_word_embeddings": True, "logit_scale": 0.25, "model_max_length": 1024}),
    "cohere, 64 blocks": Row(
        "CohereConfig",
        {"tie_word_embeddings": True, "num_hidden_layers": 64, "use_qk_norm": True, "logit_scale": 0.25},
    ),
    "cohere2": Row(
        "Cohere2Config",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 5,
            "sliding_window": 24,
            "logit_scale": 0.25,
            "rotary_pct": 1.0,
        },
    ),
    "cohere2, other pattern": Row(
        "Cohere2Config",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 4,
            "sliding_window": 24,
            "sliding_window_pattern": 2,
            "logit_scale": 0.25,
            "rotary_pct": 1.0,
        },
    ),
    "deepseek_v2": Row(
        "DeepseekV2Config",
        {
            **DEEPSEEK,
            "routed_scaling_factor": 1.5,
            "topk_method": "greedy",
            "scoring_func": "softmax",
            "rope_parameters": _deepseek_yarn(mscale=0.707, mscale_all_dim=0.707),
        },
    ),
    "deepseek_v2, lite": Row(
        "DeepseekV2Config", {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": _deepseek_yarn()}
    ),
    "deepseek_v3": Row(
        "DeepseekV3Config",
        {
            **DEEPSEEK,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "rope_parameters": _deepseek_yarn(mscale=1.0, mscale_all_dim=1.0),
        },
        rewrite=rewrites.deepseek_published,
    ),
    "deepseek_v3, other mscale": Row(
        "DeepseekV3Config",
        {
            **DEEPSEEK,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "rope_parameters": _deepseek_yarn(mscale=1.0, mscale_all_dim=0.5),
        },
        rewrite=rewrites.fused_experts,
    ),
    "exaone": Row(
        "LlamaConfig",
        {"rope_parameters": _LLAMA3, "rms_norm_eps": 1e-5},
        rewrite=rewrites.exaone,
    ),
    "exaone4": Row(
        "Exaone4Config",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 2,
            "tie_word_embeddings": True,
            "rope_parameters": _LLAMA3,
        },
    ),
    # llama.cpp has windows in models of 64 layers only.
    "exaone4, sliding": Row(
        "Exaone4Config",
        {"num_hidden_layers": 64, "sliding_window": 16, "sliding_window_pattern": 4, "rope_parameters": _LLAMA3},
    ),
    "falcon": Row("FalconConfig", {**_FALCON, "num_kv_heads": 1}, spread=0.06),
    "falcon, a key for each head": Row("FalconConfig", {**_FALCON, "multi_query": False}, spread=0.06),
    "falcon, grouped": Row(
        "FalconConfig",
        {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "tie_word_embeddings": True},
        spread=0.06,
        rewrite=_refined_web,
    ),
    "falcon, one norm": Row(
        "FalconConfig",
        {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        spread=0.06,
    ),
    "falcon_mamba": Row(
        "FalconMambaConfig",
        {**_NO_ATTENTION, "mixer_rms_eps": 1e-5, "time_step_rank": 8},
    ),
    "gemma": Row("GemmaConfig", {"head_dim": 32, "tie_word_embeddings": True}, tokenizer="gemma", spread=0.08),
    "gemma2": Row(
        "Gemma2Config",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "num_hidden_layers": 4,
            "sliding_window": 16,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": True,
        },
        tokenizer="gemma",
        spread=0.045,
    ),
    "gemma3": Row("Gemma3TextConfig", _GEMMA3, tokenizer="gemma3", spread=0.05),
    "gemma3, older config": Row("Gemma3TextConfig", _GEMMA3, tokenizer="gemma3", spread=0.05, rewrite=published.gemma3),
    "gemma3, other layers": Row(
        "Gemma3TextConfig",
        {
            **_GEMMA3,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "final_logit_softcapping": None,
        },
        tokenizer="gemma3",
        spread=0.05,
    ),
    "gemma3, with images": Row(
        "Gemma3Config",
        {
            "text_config": {
                **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "max_position_embeddings")),
                "num_hidden_layers": 7,
                "sliding_window": 16,
                "tie_word_embeddings": True,
                "rope_parameters": {**_GEMMA3["rope_parameters"], "sliding_attention": {"rope_type": "default"}},
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
        auto="AutoModelForImageTextToText",
        tokenizer="gemma3",
        spread=0.04,
        rewrite=published.gemma3_with_images,
    ),
    "glm": Row("GlmConfig", {**_GLM, "attention_bias": True}, tokenizer="glm"),
    "glm4": Row("Glm4Config", {**_GLM, "head_dim": 32, "attention_bias": False}, tokenizer="glm"),
    "glm4, biases and yarn": Row(
        "Glm4Config",
        {
            "head_dim": 16,
            "rope_parameters": {**_YARN, "partial_rotary_factor": 0.5},
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        tokenizer="glm",
    ),
    "gpt2": Row("GPT2Config", {**_GPT2, "tie_word_embeddings": True}, spread=0.08),
    "gpt2, of the hub": Row(
        "GPT2Config", {**_GPT2, "tie_word_embeddings": True}, spread=0.08, rewrite=_gpt2_of_the_hub
    ),
    "gpt2, untied": Row("GPT2Config", {**_GPT2, "n_inner": 96, "activation_function": "gelu"}, spread=0.08),
    "gpt_bigcode": Row("GPTBigCodeConfig", {**_GPT2, "tie_word_embeddings": True}, spread=0.08),
    "gpt_bigcode, a key for each head": Row("GPTBigCodeConfig", {**_GPT2, "multi_query": False}, spread=0.08),
    "gpt_neox": Row("GPTNeoXConfig", {"num_key_value_heads": None}, spread=0.08, rewrite=_neox_of_transformers_4),
    "gpt_neox, sequential": Row(
        "GPTNeoXConfig",
        {
            "num_key_value_heads": None,
            "use_parallel_residual": False,
            "hidden_act": "gelu_new",
            "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
        },
        spread=0.08,
    ),
    "gpt_oss": Row("GptOssConfig", _GPT_OSS),
    "gpt_oss, mxfp4": Row("GptOssConfig", _GPT_OSS, prepare=round_experts, rewrite=pack_experts),
    "granite": Row("GraniteConfig", {**_GRANITE, "attention_bias": True, "mlp_bias": True}),
    "granite, tied": Row("GraniteConfig", {**_GRANITE, "tie_word_embeddings": True}),
    "granitemoe": Row("GraniteMoeConfig", _GRANITE_MOE),
    "granitemoehybrid": Row(
        "GraniteMoeHybridConfig",
        {**_GRANITE_4, "shared_intermediate_size": 96, "position_embedding_type": "rope"},
        rewrite=with_older_layer_types,
    ),
    "granitemoehybrid, no rotation": Row(
        "GraniteMoeHybridConfig",
        {**_GRANITE_4, "shared_intermediate_size": 80},
        rewrite=with_older_layer_types,
    ),
    "granitemoeshared": Row(
        "GraniteMoeSharedConfig", {**_GRANITE_MOE, "shared_intermediate_size": 80, "attention_bias": True}
    ),
    "internlm2": Row("LlamaConfig", rewrite=rewrites.internlm2),
    "llama": Row("LlamaConfig"),
    "llama, llama3 scaling": Row(
        "LlamaConfig",
        {
            "rope_parameters": _LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "mamba": Row("MambaConfig", _NO_ATTENTION),
    "mamba2": Row(
        "Mamba2Config",
        {**_NO_ATTENTION, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 32, "use_cache": False},
    ),
    "minicpm": Row(
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 1.4 / 2**0.5,
            "logits_scaling": 4.0,
            "attention_multiplier": 0.25,
            "tie_word_embeddings": True,
        },
        rewrite=rewrites.minicpm,
    ),
    "minicpm3": Row(
        "MiniCPM3Config",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 32,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
        },
        spread=0.08,
    ),
    "mistral": Row("MistralConfig", {"sliding_window": None}),
    "mixtral": Row("MixtralConfig", MIXTURE),
    "mixtral, joined experts": Row("MixtralConfig", MIXTURE, rewrite=join_experts),
    "modernbert": Row("ModernBertConfig", _MODERNBERT, auto="AutoModel", encoder=True),
    "modernbert, published config": Row(
        "ModernBertConfig",
        _MODERNBERT | {"global_attn_every_n_layers": 2},
        auto="AutoModel",
        rewrite=_published_modernbert,
        encoder=True,
    ),
    "nemotron": Row("NemotronConfig", spread=0.1),
    "nemotron, biases": Row(
        "NemotronConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        spread=0.1,
    ),
    "nomic_bert": Row("NomicBertConfig", _ENCODER, auto="AutoModel", tokenizer="minilm", encoder=True),
    "nomic_bert, published config": Row(
        "NomicBertConfig",
        {**_ENCODER, "vocab_size": 30528, "max_position_embeddings": 2048},
        auto="AutoModel",
        tokenizer="minilm",
        rewrite=_published_nomic,
        encoder=True,
    ),
    "olmo": Row("OlmoConfig", {"clip_qkv": 1.5}),
    "olmo2": Row("Olmo2Config"),
    "olmo3": Row(
        "Olmo3Config",
        {
            "num_hidden_layers": 5,
            "sliding_window": 24,
            "rope_parameters": {
                "full_attention": _YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            },
        },
    ),
    "olmoe": Row("OlmoeConfig", {**MIXTURE, "num_key_value_heads": 4}),
    "olmoe, joined experts": Row("OlmoeConfig", {**MIXTURE, "num_key_value_heads": 4}, rewrite=join_experts),
    "phi": Row(
        "PhiConfig", {"intermediate_size": 256, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}, spread=0.08
    ),
    "phi3": Row("Phi3Config", tokenizer="phi3"),
    "phi3, longrope long": Row(
        "Phi3Config", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 32}, tokenizer="phi3"
    ),
    "phi3, longrope short": Row(
        "Phi3Config", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 256}, tokenizer="phi3"
    ),
    "phi3, phi-4-mini": Row(
        "Phi3Config",
        {
            "hidden_size": 128,
            "head_dim": 32,
            "rope_parameters": {**_LONGROPE, "partial_rotary_factor": 0.5},
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
        },
        tokenizer="phi3",
    ),
    "qwen2": Row("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2, yarn": Row(
        "Qwen2Config",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "qwen2_moe": Row("Qwen2MoeConfig", SHARED),
    "qwen2_moe, joined experts": Row("Qwen2MoeConfig", {**SHARED, "qkv_bias": False}, rewrite=join_experts),
    "qwen3": Row("Qwen3Config", {"head_dim": 32}),
    "qwen3_moe": Row("Qwen3MoeConfig", MANY),
    "qwen3_moe, joined experts": Row("Qwen3MoeConfig", {**MANY, "tie_word_embeddings": True}, rewrite=join_experts),
    "roberta": Row(
        "RobertaConfig",
        {**_ENCODER, "max_position_embeddings": 130, "pad_token_id": 1, "type_vocab_size": 1},
        auto="AutoModel",
        encoder=True,
    ),
    "seed_oss": Row("SeedOssConfig", {"head_dim": 32}),
    "smollm3": Row("SmolLM3Config", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "stablelm": Row("StableLmConfig", {"use_qkv_bias": True}),
    "stablelm, parallel": Row("StableLmConfig", {"use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2": Row("Starcoder2Config", {"tie_word_embeddings": True}, spread=0.08),
    "xlm-roberta": Row(
        "XLMRobertaConfig",
        {**_ENCODER, "max_position_embeddings": 130, "type_vocab_size": 1},
        auto="AutoModel",
        tokenizer="unigram",
        encoder=True,
    ),
}
