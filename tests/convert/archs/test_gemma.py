"""Gemma 1 to 3: both generations of config.json, hidden defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.convert.archs import ConfigReader, HParams, gemma, gemma2, gemma3
from llmkit.convert.archs.rules import Family
from llmkit.errors import FormatError, LlmkitError, UnsupportedError

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
GEMMA = {**SIZES, "vocab_size": 300, "num_key_value_heads": 1}

# text_config of the published model of 4 billion parameters: all it says.
TEXT_4B = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def read(family: Family, config: dict[str, Any]) -> HParams:
    return family.read_hparams(ConfigReader(Path("config.json"), config))


def test_what_the_published_text_config_leaves_out() -> None:
    h = read(gemma3.FAMILY, TEXT_4B)
    assert (h.n_vocab, h.n_heads, h.n_kv_heads, h.head_dim, h.n_context) == (262_208, 8, 4, 256, 131_072)
    assert h.rope is not None
    assert (h.rope.theta, h.rope.scaling, h.rope.number("factor")) == (1e6, "linear", 8.0)
    assert h.sliding_rope is not None
    assert (h.sliding_rope.theta, h.sliding_rope.scaling) == (1e4, "default")
    assert (h.sliding_window, h.sliding_layers, h.final_softcap, h.tied_embeddings) == (1024, None, None, True)


def test_newer_configs_say_the_same() -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    kinds = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(34)]
    newer = {key: value for key, value in TEXT_4B.items() if key != "rope_scaling"}
    h = read(gemma3.FAMILY, {**newer, "rope_parameters": rope, "layer_types": kinds})
    older = read(gemma3.FAMILY, TEXT_4B)
    assert h.rope is not None
    assert older.rope is not None
    assert (h.rope.theta, h.rope.scaling, h.rope.number("factor")) == (1e6, "linear", 8.0)
    assert (h.sliding_layers, h.sliding_window) == (older.sliding_layers, older.sliding_window)
    assert h.sliding_rope is not None
    assert h.sliding_rope.theta == 1e4


def test_layers_that_llama_cpp_would_not_assume_are_stated() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    for family, settings in ((gemma2.FAMILY, {}), (gemma3.FAMILY, {"query_pre_attn_scalar": 256})):
        h = read(family, {**GEMMA, **settings, "layer_types": kinds})
        assert h.sliding_layers == (False, True, True, False)
    assert read(gemma3.FAMILY, {**GEMMA, "sliding_window_pattern": 2}).sliding_layers == (True, False, True, False)
    everything = read(gemma3.FAMILY, {**GEMMA, "sliding_window_pattern": 1})
    assert (everything.sliding_window, everything.sliding_layers, everything.sliding_rope) == (None, None, None)


def test_the_largest_models_scale_queries_by_another_width() -> None:
    largest2 = {**GEMMA, "hidden_size": 4608, "num_hidden_layers": 46, "num_attention_heads": 32, "head_dim": 128}
    largest3 = {**GEMMA, "hidden_size": 5376, "num_hidden_layers": 62, "num_attention_heads": 32, "head_dim": 128}
    read(gemma2.FAMILY, {**largest2, "query_pre_attn_scalar": 144})
    read(gemma3.FAMILY, {**largest3, "query_pre_attn_scalar": 168})
    with pytest.raises(UnsupportedError, match=r"query_pre_attn_scalar 128; llama\.cpp computes this model with 168"):
        read(gemma3.FAMILY, {**largest3, "query_pre_attn_scalar": 128})


def test_the_first_release_calls_its_activation_gelu() -> None:
    assert read(gemma.FAMILY, {**GEMMA, "hidden_act": "gelu", "hidden_activation": None}).head_dim == 256


@pytest.mark.parametrize(
    ("family", "settings", "error", "words"),
    [
        (gemma, {"hidden_act": "silu"}, UnsupportedError, "hidden_act is 'silu'"),
        (gemma, {"tie_word_embeddings": False}, UnsupportedError, "tie_word_embeddings False"),
        (gemma, {"attention_bias": True}, UnsupportedError, "attention_bias true"),
        (gemma, {"use_bidirectional_attention": True}, UnsupportedError, "use_bidirectional_attention true"),
        (gemma, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, UnsupportedError, "rope_type 'yarn'"),
        (gemma2, {"hidden_activation": "relu"}, UnsupportedError, "hidden_activation is 'relu'"),
        (gemma2, {"attn_logit_softcapping": None}, UnsupportedError, "attn_logit_softcapping is null"),
        (gemma2, {"query_pre_attn_scalar": 64}, UnsupportedError, "query_pre_attn_scalar 64"),
        (gemma2, {"layer_types": ["full_attention"]}, FormatError, "layer_types must have 4 entries"),
        (gemma2, {"layer_types": 4 * ["linear_attention"]}, FormatError, "sliding_attention and full_attention"),
        (gemma2, {"layer_types": [[], {}, 0, None]}, FormatError, "sliding_attention and full_attention"),
        (gemma3, {"attn_logit_softcapping": 50.0}, UnsupportedError, "attn_logit_softcapping"),
        (gemma3, {"sliding_window": None}, FormatError, "sliding_window is null"),
    ],
)
def test_refused(family: Any, settings: dict[str, Any], error: type[LlmkitError], words: str) -> None:
    with pytest.raises(error, match=words):
        read(family.FAMILY, {**GEMMA, **settings})


def test_tensors_of_multimodal_checkpoints() -> None:
    for name in (
        "model.layers.0.mlp.up_proj.weight",
        "language_model.model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
    ):
        assert gemma3.FAMILY.plain_name(name) == "model.layers.0.mlp.up_proj.weight"
    for name in (
        "vision_tower.vision_model.post_layernorm.bias",
        "model.vision_tower.vision_model.post_layernorm.bias",
        "multi_modal_projector.mm_input_projection_weight",
    ):
        assert gemma3.FAMILY.is_of_another_part(gemma3.FAMILY.plain_name(name))
