"""Command R and its successor: configs of both generations, and what llama.cpp does not compute."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from tests.convert.archs.configs import defaults, read


@pytest.mark.parametrize("model_type", ["cohere", "cohere2"])
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    found, expected = read(model_type), defaults(model_type)
    assert found.n_context == expected.max_position_embeddings
    assert found.n_kv_heads == expected.num_key_value_heads
    assert found.norm_eps == expected.layer_norm_eps
    assert found.rms_eps is None
    assert found.logit_scale == expected.logit_scale
    assert found.tied_embeddings is expected.tie_word_embeddings is True
    assert found.rope is not None
    assert found.rope.theta == expected.rope_parameters["rope_theta"]


def test_command_r_states_its_context_in_a_key_of_its_own() -> None:
    assert read("cohere", max_position_embeddings=8192, model_max_length=131072).n_context == 131072
    assert read("cohere", max_position_embeddings=8192).n_context == 8192


def test_scaling_is_stated_to_be_none_unless_there_is_one() -> None:
    assert read("cohere").extra["rope.scaling.type"].data == "none"
    linear = {"rope_type": "linear", "factor": 2.0}
    assert "rope.scaling.type" not in read("cohere", rope_scaling=linear, rope_theta=1e4).extra


def test_blocks_with_a_window_by_either_generation_of_configs() -> None:
    # llama.cpp's own pattern is left to it.
    assert read("cohere2").sliding_layers is None
    assert read("cohere2", sliding_window_pattern=4).sliding_layers is None
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    assert read("cohere2", layer_types=kinds).sliding_layers is None
    every_other = (True, False, True, False)
    assert read("cohere2", sliding_window_pattern=2).sliding_layers == every_other
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read("cohere2", layer_types=kinds, sliding_window_pattern=4).sliding_layers == every_other
    assert read("cohere2", sliding_window=77).sliding_window == 77
    assert read("cohere2").sliding_window == 4096


@pytest.mark.parametrize(
    ("model_type", "values", "error", "words"),
    [
        ("cohere", {"use_qk_norm": True}, UnsupportedError, "use_qk_norm is True; .* 64 blocks and more .* has 4"),
        ("cohere", {"num_hidden_layers": 64}, UnsupportedError, "use_qk_norm is False"),
        ("cohere", {"tie_word_embeddings": False}, UnsupportedError, "tie_word_embeddings is False"),
        ("cohere", {"attention_bias": True}, UnsupportedError, "attention_bias is True"),
        ("cohere", {"head_dim": 32}, UnsupportedError, "head_dim is 32; .* 64 / 4"),
        ("cohere", {"rope_scaling": {"rope_type": "llama3"}}, UnsupportedError, "rope_type 'llama3'"),
        ("cohere2", {"use_qk_norm": True}, UnsupportedError, "use_qk_norm is True"),
        ("cohere2", {"sliding_window": None}, UnsupportedError, "sliding_window is None"),
        ("cohere2", {"layer_types": ["full_attention"]}, FormatError, "layer_types must be a list of 4 names"),
        ("cohere2", {"layer_types": ["chunked_attention"] * 4}, FormatError, "chunked_attention"),
    ],
)
def test_refused(model_type: str, values: dict[str, Any], error: type[LlmkitError], words: str) -> None:
    with pytest.raises(error, match=words):
        read(model_type, **values)
