"""Phi 1 to 4: rotary embedding in its generations, and what is refused or noted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llmkit.convert.archs import ConfigReader, HParams, phi, phi3
from llmkit.convert.archs.rules import Family
from llmkit.convert.gguf_keys import architecture_metadata, rope_factors
from llmkit.errors import FormatError, LlmkitError, UnsupportedError

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
SHORT, LONG = [1.0 + i / 10 for i in range(8)], [1.0 + i for i in range(8)]
LONGROPE = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
PHI3_128K = {
    **SIZES,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": LONGROPE,
    "sliding_window": 262144,
}


def read(family: Family, config: dict[str, Any]) -> HParams:
    return family.read_hparams(ConfigReader(Path("config.json"), config))


def keys(h: HParams) -> dict[str, Any]:
    return {key: value.data for key, value in architecture_metadata("phi3", h, []).items()}


def notes(config: dict[str, Any]) -> tuple[str, ...]:
    return phi3.notes(ConfigReader(Path("config.json"), config), read(phi3.FAMILY, config))


@pytest.mark.parametrize("name", ["longrope", "su"])
def test_longrope(name: str) -> None:
    h = read(phi3.FAMILY, {**PHI3_128K, "rope_scaling": {**LONGROPE, "type": name}})
    found = keys(h)
    assert found["phi3.rope.scaling.type"] == "longrope"
    assert found["phi3.rope.scaling.original_context_length"] == 4096
    assert found["phi3.rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert {t.name: t.parts[0].values for t in rope_factors(h)} == {  # type: ignore[union-attr]
        "rope_factors_long.weight": tuple(LONG),
        "rope_factors_short.weight": tuple(SHORT),
    }
    assert [note[:60] for note in notes(PHI3_128K)] == ["llama.cpp takes LongRoPE's short factors in sessions of up t"]


def test_longrope_of_newer_configs_with_a_share_and_a_factor_of_its_own() -> None:
    rope = {**LONGROPE, "short_factor": SHORT[:6], "long_factor": LONG[:6], "partial_rotary_factor": 0.75}
    config = {
        **{key: value for key, value in PHI3_128K.items() if key != "rope_scaling"},
        "rope_parameters": {**rope, "attention_factor": 1.5},
    }
    found = keys(read(phi3.FAMILY, config))
    assert found["phi3.rope.dimension_count"] == 12
    assert found["phi3.rope.scaling.attn_factor"] == 1.5


def test_longrope_from_a_context_of_one_token_has_no_scale() -> None:
    with pytest.raises(FormatError, match="original_max_position_embeddings 1 must be more than 1"):
        keys(read(phi3.FAMILY, {**PHI3_128K, "original_max_position_embeddings": 1}))


def test_a_window_that_llama_cpp_does_not_compute_is_noted() -> None:
    config = {**SIZES, "sliding_window": 2047}
    assert keys(read(phi3.FAMILY, config))["phi3.attention.sliding_window"] == 2047
    (note,) = notes(config)
    assert note.startswith("sliding_window 2047 has no effect")
    assert keys(read(phi3.FAMILY, SIZES))["phi3.attention.sliding_window"] == 0
    assert notes(SIZES) == ()


def test_phi_rotates_half_of_a_head_unless_it_says_otherwise() -> None:
    for settings, rotated in (({}, 8), ({"partial_rotary_factor": 0.25}, 4)):
        h = read(phi.FAMILY, {**SIZES, **settings})
        assert h.rope is not None
        assert h.rope.n_rotated(h.head_dim) == rotated
    assert (h.norm_eps, h.rms_eps) == (1e-5, None)


@pytest.mark.parametrize(
    ("family", "settings", "error", "words"),
    [
        (phi, {"qk_layernorm": True}, UnsupportedError, "qk_layernorm true"),
        (phi, {"tie_word_embeddings": True}, UnsupportedError, "tie_word_embeddings true"),
        (phi, {"head_dim": 32}, UnsupportedError, "head_dim 32; .* hidden_size / num_attention_heads"),
        (phi3, {"head_dim": 32}, UnsupportedError, "head_dim 32; .* hidden_size / num_attention_heads"),
        (phi3, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, UnsupportedError, "rope_type 'yarn'"),
        (phi3, {"original_max_position_embeddings": 4096.5}, FormatError, "original_max_position_embeddings must be"),
    ],
)
def test_refused(family: Any, settings: dict[str, Any], error: type[LlmkitError], words: str) -> None:
    with pytest.raises(error, match=words):
        read(family.FAMILY, {**SIZES, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"long_factor": LONG[:7]}, "long_factor must be a list of 8 numbers, found 7 entries"),
        ({"long_factor": None}, "long_factor must be a list of 8 numbers, found None"),
        ({"short_factor": [*SHORT[:7], 0]}, r"short_factor\[7\] must be a positive number"),
    ],
)
def test_broken_factors(settings: dict[str, Any], words: str) -> None:
    h = read(phi3.FAMILY, {**PHI3_128K, "rope_scaling": {**LONGROPE, **settings}})
    with pytest.raises(FormatError, match=words):
        rope_factors(h)
