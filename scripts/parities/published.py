"""Checkpoints as they were published, where transformers 5 saves them with other words."""

from __future__ import annotations

import re
from typing import Any

from parities.rewrites import Config, Tensors


def gemma3(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """The text model of transformers 4: a key for each setting of the rotary embedding, and one for the pattern."""
    return tensors, _older_gemma3(config)


def gemma3_with_images(tensors: Tensors, config: Config) -> tuple[Tensors, Config]:
    """A text_config that leaves out what transformers has as default, such as the numbers of heads."""
    text = _older_gemma3(config["text_config"])
    stated = ("hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "rope_scaling", "sliding_window")
    # The vocabulary is not that of the default: 262,208 rows would be no tiny model.
    text = {key: text[key] for key in (*stated, "vocab_size")}
    ids = {key: config["text_config"][key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return tensors, {**config, **ids, "text_config": text}


def _older_gemma3(text: Config) -> Config:
    newer = ("layer_types", "rope_parameters", "_sliding_window_pattern")
    rope, local = (text["rope_parameters"][f"{kind}_attention"] for kind in ("full", "sliding"))
    return {
        **{key: value for key, value in text.items() if key not in newer},
        "rope_theta": rope["rope_theta"],
        "rope_local_base_freq": local["rope_theta"],
        "rope_scaling": {"rope_type": rope["rope_type"], "factor": rope["factor"]},
        "sliding_window_pattern": 6,
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


def gamma_and_beta(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The names of checkpoints that came from TensorFlow, below the name of the model, as those with a head have."""
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for newer, old in older.items():
            name = name.replace(newer, old)
        renamed[f"bert.{name}"] = tensor
    return renamed, {**config, "architectures": ["BertForMaskedLM"]}


def nomic(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
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


def gpt2_of_the_hub(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Names without the model's in front, and the causal masks among the tensors."""
    import torch

    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 512, 512).tril() for i in range(config["n_layer"])}
    return {**{name.removeprefix("transformer."): value for name, value in tensors.items()}, **masks}, config


def neox_of_transformers_4(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """GPT-NeoX's rotary settings under the names that they had first."""
    rope = config.pop("rope_parameters")
    return tensors, config | {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}


def refined_web(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Falcon 40B as it was first published."""
    older = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    config = {older.get(key, key): value for key, value in config.items() if key != "new_decoder_architecture"}
    return tensors, config | {"architectures": ["RWForCausalLM"], "model_type": "RefinedWeb"}


def modernbert(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
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
