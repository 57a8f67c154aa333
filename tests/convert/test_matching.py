"""Matching tensors with rules: layers that predict further tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.convert.archs import ConfigReader, llama
from llmkit.convert.checkpoint import open_checkpoint
from llmkit.convert.matching import match_tensors
from llmkit.errors import UnsupportedError
from tests.tinymodels import TinyLlama


def test_layers_beyond_the_models_are_left_out_with_a_note_where_the_family_has_such(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(TinyLlama(n_layers=3, config={"num_hidden_layers": 2}).write(tmp_path / "m"))
    config = ConfigReader(checkpoint.folder / "config.json", checkpoint.config)
    hparams = llama.read_hparams(config)
    with pytest.raises(UnsupportedError, match=r"model\.layers\.2\."):
        match_tensors(llama.FAMILY, hparams, checkpoint, checkpoint.tensors)
    family = replace(llama.FAMILY, further_layers=r"model\.layers\.(\d+)\..*")
    matched, notes = match_tensors(family, hparams, checkpoint, checkpoint.tensors)
    assert {m.block for m in matched} == {None, 0, 1}
    assert len(notes) == 1
    assert notes[0].startswith("9 tensors")
    assert "num_hidden_layers 2" in notes[0]
