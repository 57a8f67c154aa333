"""GLM-4 in its three forms: configs of both generations, and what llama.cpp does not compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from llmkit.errors import UnsupportedError
from tests.convert.archs.configs import defaults, read

# What the config class of the first form calls what `SIZES` has otherwise.
CHATGLM: Final = {
    "ffn_hidden_size": 96,
    "num_layers": 4,
    "padded_vocab_size": 320,
    "kv_channels": 16,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "layernorm_epsilon": 1.5625e-7,
    "seq_length": 131072,
    "rope_ratio": 500,
}


@pytest.mark.parametrize("model_type", ["glm", "glm4"])
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    sizes = {"hidden_size": 512} if model_type == "glm" else {}
    found, expected = read(model_type, **sizes), defaults(model_type)
    assert found.n_context == expected.max_position_embeddings
    assert found.n_kv_heads == expected.num_key_value_heads
    assert found.head_dim == expected.head_dim
    assert found.rms_eps == expected.rms_norm_eps
    assert found.attention_bias is expected.attention_bias is True
    assert found.tied_embeddings is expected.tie_word_embeddings is False
    assert found.rope is not None
    assert found.rope.theta == expected.rope_parameters["rope_theta"]
    assert found.rope.share == expected.rope_parameters["partial_rotary_factor"]


def test_the_rotated_share_stands_in_either_place() -> None:
    for values in ({"partial_rotary_factor": 0.25}, {"rope_parameters": {"partial_rotary_factor": 0.25}}):
        rope = read("glm4", **values).rope
        assert rope is not None
        assert rope.n_rotated(128) == 32


def test_the_first_form_says_the_same_under_other_names() -> None:
    first = read("chatglm", **CHATGLM)
    later = read("glm", head_dim=16, num_key_value_heads=2, rope_theta=5e6)
    assert first.rope is not None
    assert later.rope is not None
    assert (first.rope.theta, first.rope.share) == (later.rope.theta, later.rope.share)
    assert replace(first, rope=None) == replace(later, rope=None)


def test_without_sharing_each_query_head_has_its_key_head() -> None:
    assert read("chatglm", **{**CHATGLM, "multi_query_attention": False}).n_kv_heads == 4


@pytest.mark.parametrize(
    ("model_type", "values", "words"),
    [
        ("chatglm", {**CHATGLM, "rmsnorm": False}, "rmsnorm is False"),
        ("chatglm", {**CHATGLM, "post_layer_norm": False}, "post_layer_norm is False"),
        ("chatglm", {**CHATGLM, "add_bias_linear": True}, "add_bias_linear is True"),
        (
            "chatglm",
            {**CHATGLM, "apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm is True",
        ),
        ("chatglm", {**CHATGLM, "kv_channels": 32}, "head_dim is 32"),
        ("glm", {"head_dim": 32}, "head_dim is 32"),
        ("glm4", {"rope_scaling": {"rope_type": "llama3"}}, "rope_type 'llama3'"),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read(model_type, **values)
