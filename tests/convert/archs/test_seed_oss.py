"""Seed-OSS: its config, and what llama.cpp does not compute."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import UnsupportedError
from tests.convert.archs.configs import defaults, read


def test_defaults_are_those_of_transformers() -> None:
    found, expected = read("seed_oss", num_attention_heads=8), defaults("seed_oss")
    assert found.n_context == expected.max_position_embeddings
    assert found.n_kv_heads == expected.num_key_value_heads
    assert found.head_dim == expected.head_dim
    assert found.rms_eps == expected.rms_norm_eps
    assert found.attention_bias is expected.attention_bias is True


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"attention_out_bias": True}, "attention_out_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type 'llama3'"),
    ],
)
def test_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read("seed_oss", num_attention_heads=8, **values)
