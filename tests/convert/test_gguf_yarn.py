"""YaRN's keys: values that llama.cpp's context turns into transformers' attention factors, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.convert.archs import Rope
from llmkit.convert.gguf_yarn import yarn_keys, yarn_parameters
from llmkit.errors import FormatError, LlmkitError, UnsupportedError

FACTOR = 40.0
GROWTH = 1 + 0.1 * math.log(FACTOR)
PUBLISHED = {"factor": FACTOR, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}


def keys(architecture: str, notes: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    rope = Rope(Path("config.json"), 10000.0, "yarn", {**PUBLISHED, **settings})
    found = yarn_keys(architecture, rope, 163840, [] if notes is None else notes)
    return {key.removeprefix("rope.scaling."): value.data for key, value in found.items()}


USUAL = {
    "type": "yarn",
    "factor": FACTOR,
    "original_context_length": 4096,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
}


def test_what_every_architecture_computes_takes_no_more_keys() -> None:
    assert keys("qwen2") == USUAL
    assert keys("qwen2", attention_factor=GROWTH) == USUAL
    assert keys("qwen2", mscale=1.0) == USUAL  # transformers needs both of the two
    assert "yarn_beta_fast" not in keys("qwen2", beta_fast=None)
    assert keys("qwen2", factor=None) == USUAL  # 163840 tokens are 40 times 4096


def test_another_attention_factor_is_stated_relative_to_the_usual() -> None:
    assert keys("qwen2", attention_factor=2.0)["attn_factor"] == pytest.approx(2 / GROWTH)
    half = 1 + 0.05 * math.log(FACTOR)
    assert keys("olmo2", mscale=1.0, mscale_all_dim=0.5)["attn_factor"] == pytest.approx(GROWTH / half / GROWTH)


def test_mistral3_reads_the_multiplier_and_the_betas() -> None:
    found = keys("mistral3", mscale=1.0, mscale_all_dim=1.0, beta_fast=8)
    assert found == USUAL | {"yarn_beta_fast": 8.0, "yarn_log_multiplier": 1.0}


def computed_by_deepseek2(found: dict[str, Any]) -> tuple[float, float]:
    """What src/llama-context.cpp and src/models/deepseek2.cpp make of the keys.

    That is the factor of what is rotated, and that of attention.
    """
    multiplier = found.get("yarn_log_multiplier", 0.0) / 0.1
    factor = found.get("attn_factor", 1.0) * (1.0 if multiplier else GROWTH)
    return factor, (factor * (1 + 0.1 * multiplier * math.log(FACTOR))) ** 2


@pytest.mark.parametrize(
    ("settings", "rotated", "scaled"),
    [
        ({}, GROWTH, 1.0),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0, (1 + 0.0707 * math.log(FACTOR)) ** 2),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0, GROWTH**2),
        ({"mscale": 0.5, "mscale_all_dim": 1.0}, (1 + 0.05 * math.log(FACTOR)) / GROWTH, GROWTH**2),
        ({"mscale_all_dim": 1.0}, GROWTH, GROWTH**2),
        ({"attention_factor": 1.0}, 1.0, 1.0),
    ],
)
def test_latent_attention_is_scaled_and_rotated_as_in_transformers(
    settings: dict[str, float], rotated: float, scaled: float
) -> None:
    assert computed_by_deepseek2(keys("deepseek2", **settings)) == pytest.approx((rotated, scaled), rel=1e-5)


def test_the_usual_settings_of_latent_attention_take_one_key() -> None:
    found = keys("deepseek2", mscale=0.707, mscale_all_dim=0.707)
    assert found == USUAL | {"yarn_log_multiplier": pytest.approx(0.0707)}


def test_what_differs_little_is_noted() -> None:
    notes: list[str] = []
    assert keys("gpt-oss", notes, truncate=False) == USUAL
    assert len(notes) == 1
    assert "truncate" in notes[0]


@pytest.mark.parametrize(
    ("architecture", "settings", "error", "words"),
    [
        ("llama", {"beta_slow": 2}, UnsupportedError, ["beta_slow 2", "with 1 only"]),
        ("deepseek2", {"beta_fast": 1.0}, UnsupportedError, ["beta_fast 1.0", "with 32 only"]),
        ("llama", {"extrapolation_factor": 0.5}, UnsupportedError, ["extrapolation_factor 0.5"]),
        ("llama", {"factor": 0.5}, FormatError, ["factor 0.5", "at least 1"]),
        ("llama", {"factor": "4"}, FormatError, ["factor", "'4'"]),
        ("llama", {"original_max_position_embeddings": 1e30}, FormatError, ["1e+30"]),
        ("llama", {"attention_factor": 1e9}, FormatError, ["attention_factor", "1000"]),
        ("llama", {"mscale": 1e30, "mscale_all_dim": 1.0}, FormatError, ["mscale", "1e+30"]),
        ("deepseek2", {"factor": 1.0, "attention_factor": 1.5}, UnsupportedError, ["attention_factor 1.5"]),
    ],
)
def test_refused(architecture: str, settings: dict[str, Any], error: type[LlmkitError], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        keys(architecture, **settings)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("qwen2", {}),
        ("qwen2", {"attention_factor": 2.0}),
        ("qwen2", {"beta_fast": None, "beta_slow": None}),
        ("mistral3", {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 8.0}),
        ("mistral3", {"mscale": 0.7, "mscale_all_dim": 0.9}),
        ("deepseek2", {}),
        ("deepseek2", {"attention_factor": 1.3}),
        ("deepseek2", {"mscale": 0.707, "mscale_all_dim": 0.707}),
        ("deepseek2", {"mscale": 1.0, "mscale_all_dim": 0.5}),
        ("deepseek2", {"mscale_all_dim": 0.8}),
    ],
)
def test_keys_lead_back_to_the_parameters(architecture: str, settings: dict[str, Any]) -> None:
    stated = {key: value for key, value in keys(architecture, **settings).items() if key != "type"}
    found = yarn_parameters(architecture, Path("model.gguf"), stated)
    expected = {key: value for key, value in {**PUBLISHED, **settings}.items() if value is not None}
    assert found == pytest.approx({key: value for key, value in expected.items() if key in found})
    # What is left out follows from the rest: the keys are the same, to the last bit.
    assert keys(architecture, **{**dict.fromkeys(PUBLISHED), **found}) == keys(architecture, **settings)


@pytest.mark.parametrize("architecture", ["qwen2", "mistral3", "deepseek2"])
@pytest.mark.parametrize("attention", [0.5, 1.0, 1.0000005, 1.37])
@pytest.mark.parametrize("multiplier", [0.0, 0.013, 0.0707, 0.1, 0.33])
def test_any_keys_lead_to_parameters_that_lead_back(architecture: str, attention: float, multiplier: float) -> None:
    stated = {"factor": FACTOR, "original_context_length": 4096, "attn_factor": attention}
    stated["yarn_log_multiplier"] = multiplier
    try:
        found = yarn_parameters(architecture, Path("model.gguf"), stated)
    except UnsupportedError:
        # Below 1, attention would need a negative mscale_all_dim.
        assert (architecture, attention) == ("deepseek2", 0.5)
        return
    again = keys(architecture, **{**dict.fromkeys(PUBLISHED), **found})
    assert again.get("attn_factor", 1.0) == pytest.approx(attention, rel=1e-6)
    expected = 0.0 if architecture == "qwen2" else float(np.float32(multiplier))
    assert again.get("yarn_log_multiplier", 0.0) == expected


@pytest.mark.parametrize(
    ("architecture", "stated"),
    [
        ("qwen2", {"factor": 0.5}),
        ("mistral3", {"factor": 40.0, "attn_factor": -1.0}),
        ("mistral3", {"factor": 40.0, "yarn_log_multiplier": -1.0}),
        ("mistral3", {"factor": 40.0, "attn_factor": 3e38, "yarn_log_multiplier": 3e38}),
        ("deepseek2", {"factor": 40.0, "attn_factor": -1.0}),
        ("deepseek2", {"factor": 40.0, "attn_factor": 3e38, "yarn_log_multiplier": 3e38}),
        ("deepseek2", {"factor": 40.0, "yarn_log_multiplier": -3e38}),
        ("deepseek2", {"factor": 1.0, "attn_factor": 2.0, "yarn_log_multiplier": 1.0}),
    ],
)
def test_absurd_keys_are_refused(architecture: str, stated: dict[str, float]) -> None:
    with pytest.raises((FormatError, UnsupportedError), match=r"model\.gguf"):
        yarn_parameters(architecture, Path("model.gguf"), stated)
