"""Which model a name means when it is to be measured."""

from __future__ import annotations

from pathlib import Path

import llmkit
from llmkit.models import ResolvedModel
from llmkit.sessions import labels_of, located
from tests.tinymodels import TinyLlama


def test_a_folder_with_a_checkpoint_is_the_checkpoint(tmp_path: Path) -> None:
    """Not what was made of it and lies beside it: that would be compared with itself."""
    folder = TinyLlama(dtype="F32").write(tmp_path / "both")
    file = llmkit.convert(folder, "gguf-q8_0", output=folder / "q8_0.gguf").path
    assert (located(folder).kind, located(folder).path) == ("checkpoint", folder)
    assert located(file).kind == "gguf"
    (only := tmp_path / "only").mkdir()
    file.rename(only / "m.gguf")
    assert located(only).kind == "gguf"


def test_models_of_the_cache_are_called_by_their_repository(tmp_path: Path) -> None:
    commit = ResolvedModel(tmp_path / ("a" * 40), "Tiny", "checkpoint", repo="org/Tiny")
    assert labels_of([commit, tmp_path / "x.gguf"]) == ["Tiny", "x.gguf"]
