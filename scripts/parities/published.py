"""Checkpoints as they were published, where transformers 5 saves them with other words."""

from __future__ import annotations

from typing import Any

Tensors = dict[str, Any]
Config = dict[str, Any]


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
