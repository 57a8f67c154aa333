"""EXAONE 4's windows: as transformers reads them, and only as llama.cpp computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.convert.archs import ConfigReader, HParams, exaone4
from llmkit.errors import FormatError, LlmkitError, UnsupportedError

SIZES = {
    "num_hidden_layers": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
THREE_OF_FOUR = (True, True, True, False) * 16


def read(**changes: Any) -> HParams:
    return exaone4.read_hparams(ConfigReader(Path("config.json"), {**SIZES, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window_pattern": 4},
        {"sliding_window_pattern": "LLLG"},
        {"layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16, "sliding_window_pattern": 7},
    ],
)
def test_layers_with_windows(changes: dict[str, Any]) -> None:
    h = read(**changes)
    assert (h.sliding_window, h.sliding_layers) == (4096, THREE_OF_FOUR)


def test_the_last_layer_looks_at_everything_by_any_pattern() -> None:
    assert read(sliding_window_pattern="LLG").sliding_layers == ((True, True, False) * 21 + (False,))


def test_null_means_no_window() -> None:
    h = read(sliding_window=None, num_hidden_layers=30)
    assert (h.sliding_window, h.sliding_layers) == (None, None)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"num_hidden_layers": 30}, UnsupportedError, ["sliding_window 4096", "num_hidden_layers 30", "64 layers"]),
        ({"sliding_window": None}, UnsupportedError, ["sliding_window None", "num_hidden_layers 64"]),
        ({"head_dim": 32}, UnsupportedError, ["head_dim 32", "hidden_size 64"]),
        ({"layer_types": ["full_attention"]}, FormatError, ["layer_types", "64 layers"]),
        ({"layer_types": ["full"] * 64}, FormatError, ["layer_types", "'full'"]),
        ({"sliding_window_pattern": "LXG"}, FormatError, ["sliding_window_pattern", "'LXG'"]),
        ({"sliding_window_pattern": ""}, FormatError, ["sliding_window_pattern"]),
    ],
)
def test_refused(changes: dict[str, Any], error: type[LlmkitError], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        read(**changes)
    for word in words:
        assert word in str(caught.value)
