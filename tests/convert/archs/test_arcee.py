"""Arcee: its config, and what llama.cpp does not compute."""

from __future__ import annotations

import pytest

from llmkit.errors import UnsupportedError
from tests.convert.archs.configs import defaults, read


def test_defaults_are_those_of_transformers() -> None:
    found, expected = read("arcee"), defaults("arcee")
    assert found.n_context == expected.max_position_embeddings
    assert found.n_kv_heads == expected.num_key_value_heads
    assert found.rms_eps == expected.rms_norm_eps


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_biases_are_refused(key: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{key} is True"):
        read("arcee", **{key: True})


def test_another_activation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="hidden_act is 'silu'; this architecture is computed with relu2 only"):
        read("arcee", hidden_act="silu")
