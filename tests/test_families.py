"""Every family: a tiny random model converts to a file that gives transformers' logits and tokens in llama.cpp."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = str(Path(__file__).resolve().parent.parent / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

FAMILIES: dict[str, Any] = import_module("parities.families").FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_parity(family: str, tmp_path: Path) -> None:
    checking = import_module("parities.checking")
    result = checking.check(family, FAMILIES[family], tmp_path / checking.folder_name(family))
    assert result.tokens == []
    assert result.back == []
    assert result.is_good, result.logits


def test_every_family_has_a_row() -> None:
    from llmkit.convert.archs import FAMILIES as known

    assert {family.model_type for family in known} <= {name.split(",")[0] for name in FAMILIES}
