"""The table of families: what tiny model of each is compared.

A row names transformers' config class and what of it is not as in `SIZES`; transformers makes the model, random weights
are put in, and it saves the checkpoint that llmkit converts.
"""

from __future__ import annotations

from typing import Final

from parities import mxfp4, published, rewrites, settings
from parities.row import Row

FAMILIES: Final[dict[str, Row]] = {
    "arcee": Row("ArceeConfig", {"rope_parameters": {**settings.YARN, "rope_theta": 10000.0, "mscale": 1.0}}),
    "bert": Row("BertConfig", settings.ENCODER, auto="AutoModel", tokenizer="minilm", encoder=True),
    "bert, older names": Row(
        "BertConfig",
        settings.ENCODER,
        auto="AutoModel",
        tokenizer="minilm",
        rewrite=published.gamma_and_beta,
        encoder=True,
    ),
    "chatglm": Row("GlmConfig", {**settings.GLM, "attention_bias": True}, tokenizer="glm", rewrite=rewrites.as_chatglm),
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
            **settings.DEEPSEEK,
            "routed_scaling_factor": 1.5,
            "topk_method": "greedy",
            "scoring_func": "softmax",
            "rope_parameters": settings.deepseek_yarn(mscale=0.707, mscale_all_dim=0.707),
        },
    ),
    "deepseek_v2, lite": Row(
        "DeepseekV2Config", {**settings.DEEPSEEK, "q_lora_rank": None, "rope_parameters": settings.deepseek_yarn()}
    ),
    "deepseek_v3": Row(
        "DeepseekV3Config",
        {
            **settings.DEEPSEEK,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "rope_parameters": settings.deepseek_yarn(mscale=1.0, mscale_all_dim=1.0),
        },
        rewrite=rewrites.deepseek_published,
    ),
    "deepseek_v3, other mscale": Row(
        "DeepseekV3Config",
        {
            **settings.DEEPSEEK,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "rope_parameters": settings.deepseek_yarn(mscale=1.0, mscale_all_dim=0.5),
        },
        rewrite=rewrites.fused_experts,
    ),
    "exaone": Row(
        "LlamaConfig",
        {"rope_parameters": settings.LLAMA3, "rms_norm_eps": 1e-5},
        rewrite=rewrites.exaone,
    ),
    "exaone4": Row(
        "Exaone4Config",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 2,
            "tie_word_embeddings": True,
            "rope_parameters": settings.LLAMA3,
        },
    ),
    # llama.cpp has windows in models of 64 layers only.
    "exaone4, sliding": Row(
        "Exaone4Config",
        {
            "num_hidden_layers": 64,
            "sliding_window": 16,
            "sliding_window_pattern": 4,
            "rope_parameters": settings.LLAMA3,
        },
    ),
    "falcon": Row("FalconConfig", {**settings.FALCON, "num_kv_heads": 1}, spread=0.06),
    "falcon, a key for each head": Row("FalconConfig", {**settings.FALCON, "multi_query": False}, spread=0.06),
    "falcon, grouped": Row(
        "FalconConfig",
        {**settings.FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "tie_word_embeddings": True},
        spread=0.06,
        rewrite=published.refined_web,
    ),
    "falcon, one norm": Row(
        "FalconConfig",
        {**settings.FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        spread=0.06,
    ),
    "falcon_mamba": Row(
        "FalconMambaConfig",
        {**settings.NO_ATTENTION, "mixer_rms_eps": 1e-5, "time_step_rank": 8},
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
    "gemma3": Row("Gemma3TextConfig", settings.GEMMA3, tokenizer="gemma3", spread=0.05),
    "gemma3, older config": Row(
        "Gemma3TextConfig", settings.GEMMA3, tokenizer="gemma3", spread=0.05, rewrite=published.gemma3
    ),
    "gemma3, other layers": Row(
        "Gemma3TextConfig",
        {
            **settings.GEMMA3,
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
                "rope_parameters": {
                    **settings.GEMMA3["rope_parameters"],
                    "sliding_attention": {"rope_type": "default"},
                },
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
    "glm": Row("GlmConfig", {**settings.GLM, "attention_bias": True}, tokenizer="glm"),
    "glm4": Row("Glm4Config", {**settings.GLM, "head_dim": 32, "attention_bias": False}, tokenizer="glm"),
    "glm4, biases and yarn": Row(
        "Glm4Config",
        {
            "head_dim": 16,
            "rope_parameters": {**settings.YARN, "partial_rotary_factor": 0.5},
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        tokenizer="glm",
    ),
    "gpt2": Row("GPT2Config", {**settings.GPT2, "tie_word_embeddings": True}, spread=0.08),
    "gpt2, of the hub": Row(
        "GPT2Config", {**settings.GPT2, "tie_word_embeddings": True}, spread=0.08, rewrite=published.gpt2_of_the_hub
    ),
    "gpt2, untied": Row("GPT2Config", {**settings.GPT2, "n_inner": 96, "activation_function": "gelu"}, spread=0.08),
    "gpt_bigcode": Row("GPTBigCodeConfig", {**settings.GPT2, "tie_word_embeddings": True}, spread=0.08),
    "gpt_bigcode, a key for each head": Row("GPTBigCodeConfig", {**settings.GPT2, "multi_query": False}, spread=0.08),
    "gpt_neox": Row(
        "GPTNeoXConfig", {"num_key_value_heads": None}, spread=0.08, rewrite=published.neox_of_transformers_4
    ),
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
    "gpt_oss": Row("GptOssConfig", settings.GPT_OSS),
    "gpt_oss, mxfp4": Row("GptOssConfig", settings.GPT_OSS, prepare=mxfp4.round_experts, rewrite=mxfp4.pack_experts),
    "granite": Row("GraniteConfig", {**settings.GRANITE, "attention_bias": True, "mlp_bias": True}),
    "granite, tied": Row("GraniteConfig", {**settings.GRANITE, "tie_word_embeddings": True}),
    "granitemoe": Row("GraniteMoeConfig", settings.GRANITE_MOE),
    "granitemoehybrid": Row(
        "GraniteMoeHybridConfig",
        {**settings.GRANITE_4, "shared_intermediate_size": 96, "position_embedding_type": "rope"},
        rewrite=rewrites.with_older_layer_types,
    ),
    "granitemoehybrid, no rotation": Row(
        "GraniteMoeHybridConfig",
        {**settings.GRANITE_4, "shared_intermediate_size": 80},
        rewrite=rewrites.with_older_layer_types,
    ),
    "granitemoeshared": Row(
        "GraniteMoeSharedConfig", {**settings.GRANITE_MOE, "shared_intermediate_size": 80, "attention_bias": True}
    ),
    "internlm2": Row("LlamaConfig", rewrite=rewrites.internlm2),
    "llama": Row("LlamaConfig"),
    "llama, llama3 scaling": Row(
        "LlamaConfig",
        {
            "rope_parameters": settings.LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "mamba": Row("MambaConfig", settings.NO_ATTENTION),
    "mamba2": Row(
        "Mamba2Config",
        {**settings.NO_ATTENTION, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 32, "use_cache": False},
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
    "mixtral": Row("MixtralConfig", settings.MIXTURE),
    "mixtral, joined experts": Row("MixtralConfig", settings.MIXTURE, rewrite=published.join_experts),
    "modernbert": Row("ModernBertConfig", settings.MODERNBERT, auto="AutoModel", encoder=True),
    "modernbert, published config": Row(
        "ModernBertConfig",
        settings.MODERNBERT | {"global_attn_every_n_layers": 2},
        auto="AutoModel",
        rewrite=published.modernbert,
        encoder=True,
    ),
    "nemotron": Row("NemotronConfig", spread=0.1),
    "nemotron, biases": Row(
        "NemotronConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        spread=0.1,
    ),
    "nomic_bert": Row("NomicBertConfig", settings.ENCODER, auto="AutoModel", tokenizer="minilm", encoder=True),
    "nomic_bert, published config": Row(
        "NomicBertConfig",
        {**settings.ENCODER, "vocab_size": 30528, "max_position_embeddings": 2048},
        auto="AutoModel",
        tokenizer="minilm",
        rewrite=published.nomic,
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
                "full_attention": settings.YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
            },
        },
    ),
    "olmoe": Row("OlmoeConfig", {**settings.MIXTURE, "num_key_value_heads": 4}),
    "olmoe, joined experts": Row(
        "OlmoeConfig", {**settings.MIXTURE, "num_key_value_heads": 4}, rewrite=published.join_experts
    ),
    "phi": Row(
        "PhiConfig", {"intermediate_size": 256, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}, spread=0.08
    ),
    "phi3": Row("Phi3Config", tokenizer="phi3"),
    "phi3, longrope long": Row(
        "Phi3Config", {"rope_parameters": settings.LONGROPE, "original_max_position_embeddings": 32}, tokenizer="phi3"
    ),
    "phi3, longrope short": Row(
        "Phi3Config", {"rope_parameters": settings.LONGROPE, "original_max_position_embeddings": 256}, tokenizer="phi3"
    ),
    "phi3, phi-4-mini": Row(
        "Phi3Config",
        {
            "hidden_size": 128,
            "head_dim": 32,
            "rope_parameters": {**settings.LONGROPE, "partial_rotary_factor": 0.5},
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
    "qwen2_moe": Row("Qwen2MoeConfig", settings.SHARED),
    "qwen2_moe, joined experts": Row(
        "Qwen2MoeConfig", {**settings.SHARED, "qkv_bias": False}, rewrite=published.join_experts
    ),
    "qwen3": Row("Qwen3Config", {"head_dim": 32}),
    "qwen3_moe": Row("Qwen3MoeConfig", settings.MANY),
    "qwen3_moe, joined experts": Row(
        "Qwen3MoeConfig", {**settings.MANY, "tie_word_embeddings": True}, rewrite=published.join_experts
    ),
    "roberta": Row(
        "RobertaConfig",
        {**settings.ENCODER, "max_position_embeddings": 130, "pad_token_id": 1, "type_vocab_size": 1},
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
        {**settings.ENCODER, "max_position_embeddings": 130, "type_vocab_size": 1},
        auto="AutoModel",
        tokenizer="unigram",
        encoder=True,
    ),
}
