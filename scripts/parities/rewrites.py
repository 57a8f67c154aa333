"""Checkpoints as they are published, made of those that transformers saves for a model that computes the same."""

from __future__ import annotations

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
