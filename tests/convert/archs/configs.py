"""Configs as users have them, for the tests of single families."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from llmkit.convert.archs import FAMILIES, ConfigReader, HParams

# What no family has a default for.
SIZES: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 320,
}


def read(model_type: str, **values: Any) -> HParams:
    """The hyper-parameters of a family for `SIZES` and these values."""
    (family,) = (family for family in FAMILIES if family.model_type == model_type)
    return family.read_hparams(ConfigReader(Path("config.json"), {**SIZES, **values}))


def defaults(model_type: str, **values: Any) -> Any:
    """transformers' config for the same."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **SIZES, **values)
