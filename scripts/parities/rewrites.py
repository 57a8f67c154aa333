"""Checkpoints as they are published, made of those that transformers saves for a model that computes the same."""

from __future__ import annotations

import math
import re
from typing import Any

Tensors = dict[str, Any]  # torch tensors by name
Config = dict[str, Any]


def older_rope(config: Config) -> Config:
    """The config with its rotary settings as transformers 4 wrote them."""
    rope = dict(config["rope_parameters"])
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    return {**rest, "rope_theta": theta, "rope_scaling": None if kind == "default" else {"type": kind, **rope}}


def deepseek_published(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """With a layer that predicts a further token."""
    n_layers = config["num_hidden_layers"]
    last = f"model.layers.{n_layers - 1}."
    further = {
        name.replace(last, f"model.layers.{n_layers}."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    norm, head = tensors["model.norm.weight"], tensors["lm_head.weight"]
    further[f"model.layers.{n_layers}.enorm.weight"] = norm.clone()
    further[f"model.layers.{n_layers}.eh_proj.weight"] = norm.outer(norm).repeat(1, 2)
    further[f"model.layers.{n_layers}.shared_head.head.weight"] = head.clone()
    return {**tensors, **further}, {**older_rope(config), "num_nextn_predict_layers": 1}


def _renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """The tensors by other names, of which those of layers are given without what stands in front of them."""
    found = {}
    for name, tensor in tensors.items():
        part = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        found[names[part[2]].replace("{i}", part[1]) if part else names[name]] = tensor
    return found


def exaone(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """EXAONE 3 of a Llama."""
    block = "transformer.h.{i}."
    names = {
        "model.embed_tokens.weight": "transformer.wte.weight",
        "input_layernorm.weight": f"{block}ln_1.weight",
        **{f"self_attn.{x}_proj.weight": f"{block}attn.attention.{x}_proj.weight" for x in "qkv"},
        "self_attn.o_proj.weight": f"{block}attn.attention.out_proj.weight",
        "post_attention_layernorm.weight": f"{block}ln_2.weight",
        "mlp.gate_proj.weight": f"{block}mlp.c_fc_0.weight",
        "mlp.up_proj.weight": f"{block}mlp.c_fc_1.weight",
        "mlp.down_proj.weight": f"{block}mlp.c_proj.weight",
        "model.norm.weight": "transformer.ln_f.weight",
        "lm_head.weight": "lm_head.weight",
    }
    config = {**older_rope(config), "model_type": "exaone", "architectures": ["ExaoneForCausalLM"]}
    config["num_layers"] = config.pop("num_hidden_layers")
    config["layer_norm_epsilon"] = config.pop("rms_norm_eps")
    config["activation_function"] = config.pop("hidden_act")
    return _renamed(tensors, names), config


def internlm2(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """InternLM2 of a Llama: for each head of keys its query heads, the keys and the values in one matrix."""
    import torch

    n_kv_heads, n_embd = config["num_key_value_heads"], config["hidden_size"]
    tensors = dict(tensors)
    for i in range(config["num_hidden_layers"]):
        parts = [tensors.pop(f"model.layers.{i}.self_attn.{x}_proj.weight") for x in "qkv"]
        groups = [part.reshape(n_kv_heads, -1, n_embd) for part in parts]
        tensors[f"model.layers.{i}.wqkv"] = torch.cat(groups, dim=1).reshape(-1, n_embd)
    block = "model.layers.{i}."
    names = {
        "model.embed_tokens.weight": "model.tok_embeddings.weight",
        "input_layernorm.weight": f"{block}attention_norm.weight",
        "wqkv": f"{block}attention.wqkv.weight",
        "self_attn.o_proj.weight": f"{block}attention.wo.weight",
        "post_attention_layernorm.weight": f"{block}ffn_norm.weight",
        "mlp.gate_proj.weight": f"{block}feed_forward.w1.weight",
        "mlp.up_proj.weight": f"{block}feed_forward.w3.weight",
        "mlp.down_proj.weight": f"{block}feed_forward.w2.weight",
        "model.norm.weight": "model.norm.weight",
        "lm_head.weight": "output.weight",
    }
    config = {**older_rope(config), "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False}
    return _renamed(tensors, names), config


def minicpm(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """MiniCPM of a Granite, which has its scales under other names."""
    config = {**older_rope(config), "model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"]}
    config["scale_emb"] = config.pop("embedding_multiplier")
    config["scale_depth"] = config.pop("residual_multiplier") * math.sqrt(config["num_hidden_layers"])
    config["dim_model_base"] = config["hidden_size"] / config.pop("logits_scaling")
    assert math.isclose(config.pop("attention_multiplier"), config.pop("head_dim", 16) ** -0.5)
    return tensors, config


def fused_experts(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """With the experts of a layer in two tensors, gate and up joined."""
    import torch

    rest, experts = {}, {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)_proj\.weight", name)
        if found is None:
            rest[name] = tensor
        else:
            experts[found[1], found[3], int(found[2])] = tensor
    n_experts = 1 + max(number for *_, number in experts)
    for place in {place for place, *_ in experts}:
        stacks = {
            part: torch.stack([experts[place, part, number] for number in range(n_experts)])
            for part in ("gate", "up", "down")
        }
        rest[f"{place}.gate_up_proj"] = torch.cat([stacks["gate"], stacks["up"]], dim=1)
        rest[f"{place}.down_proj"] = stacks["down"]
    return rest, config


def with_older_layer_types(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Granite 4's kinds of blocks as transformers 4 and the published checkpoints call them."""
    older = {"full_attention": "attention", "linear_attention": "mamba"}
    return tensors, {**config, "layer_types": [older[kind] for kind in config["layer_types"]]}


def as_chatglm(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """GLM's as the code that was published with GLM-4 of 2024 has it."""
    import torch

    names = {
        "model.embed_tokens.": "transformer.embedding.word_embeddings.",
        "model.norm.": "transformer.encoder.final_layernorm.",
        "model.layers.": "transformer.encoder.layers.",
        "lm_head.": "transformer.output_layer.",
        ".self_attn.o_proj.": ".self_attention.dense.",
        ".mlp.gate_up_proj.": ".mlp.dense_h_to_4h.",
        ".mlp.down_proj.": ".mlp.dense_4h_to_h.",
    }
    renamed: Tensors = {}
    for name, values in tensors.items():
        if "_proj" in name and ".self_attn.q" in name:
            values = torch.cat([tensors[name.replace(".q_proj", f".{part}_proj")] for part in "qkv"])
            name = name.replace(".self_attn.q_proj", ".self_attention.query_key_value")
        elif ".self_attn.k_proj" in name or ".self_attn.v_proj" in name:
            continue
        for here, there in names.items():
            name = name.replace(here, there)
        renamed[name] = values
    rope = config["rope_parameters"]
    n_layers = config["num_hidden_layers"]
    published = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": config["attention_bias"],
        "apply_residual_connection_post_layernorm": False,
        "ffn_hidden_size": config["intermediate_size"],
        "hidden_size": config["hidden_size"],
        "kv_channels": config["head_dim"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "num_attention_heads": config["num_attention_heads"],
        "num_hidden_layers": n_layers,
        "num_layers": n_layers,
        "padded_vocab_size": config["vocab_size"],
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": rope["rope_theta"] / 10000,
        "seq_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
    }
    return renamed, published
