"""OLMo 1 to 3: configs of both generations, and what llama.cpp does not compute."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import FormatError, UnsupportedError
from tests.convert.archs.configs import defaults, read

YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}


def by_layer(sliding: dict[str, Any]) -> dict[str, Any]:
    """A config whose blocks with a window rotate like this, and the others as usual."""
    return {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": sliding}}


@pytest.mark.parametrize("model_type", ["olmo", "olmo2", "olmo3"])
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    found, expected = read(model_type), defaults(model_type)
    assert found.n_context == expected.max_position_embeddings
    assert found.n_kv_heads == expected.num_key_value_heads
    assert found.rms_eps == getattr(expected, "rms_norm_eps", None)
    assert found.norm_eps == (1e-5 if model_type == "olmo" else None)
    assert found.tied_embeddings is expected.tie_word_embeddings is False
    rope = expected.rope_parameters
    assert found.rope is not None
    assert found.rope.theta == rope.get("full_attention", rope)["rope_theta"]


def test_clipping_is_stated_where_there_is_any() -> None:
    assert not read("olmo").extra
    assert not read("olmo", clip_qkv=None).extra
    assert read("olmo", clip_qkv=8.0).extra["attention.clamp_kqv"].data == 8.0


def test_windows_and_scaling_of_olmo3_by_either_generation_of_configs() -> None:
    older = read("olmo3", rope_theta=500000, rope_scaling=YARN)
    newer = read(
        "olmo3",
        rope_parameters={
            "full_attention": {**YARN, "rope_theta": 500000},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000},
        },
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    )
    assert older == newer
    assert older.sliding_layers == (True, True, True, False)
    assert older.sliding_window == 4096
    assert older.rope is not None
    assert older.rope.scaling == "yarn"
    assert older.extra["rope.freq_base_swa"].data == 500000


@pytest.mark.parametrize(
    ("model_type", "values", "words"),
    [
        ("olmo", {"attention_bias": True}, "attention_bias is True"),
        ("olmo", {"rope_scaling": {"rope_type": "llama3"}}, "rope_type 'llama3'"),
        ("olmo", {"head_dim": 32}, "head_dim is 32"),
        ("olmo2", {"attention_bias": True}, "attention_bias is True"),
        ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ("olmo3", {"sliding_window": None}, "sliding_window is None"),
        ("olmo3", by_layer({"rope_type": "default", "rope_theta": 1e4}), "sliding_attention .* 500000"),
        ("olmo3", by_layer({"rope_type": "linear", "factor": 2}), "without scaling"),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read(model_type, **values)


def test_a_clipping_that_is_no_number_is_refused() -> None:
    with pytest.raises(FormatError, match="clip_qkv must be a positive number"):
        read("olmo", clip_qkv="8")
