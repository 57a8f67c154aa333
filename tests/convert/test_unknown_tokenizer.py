"""A whole conversion of a checkpoint whose pre-tokenizer no table has."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import llmkit
from llmkit.errors import UnsupportedError
from tests.convert.trained import write_json

# SmolLM2's rules in one expression, and with a difference that its tokens show.
SAME = r"\p{N}|'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\s|$|\p{N})|\s+"
OTHER = r"\p{N}|\p{L}| ?[^\s\p{L}\p{N}]+|\s+"


def with_rule(source: Path, folder: Path, regex: str) -> Path:
    """The checkpoint in `source` with another pre-tokenizer, sharing its weights."""
    for path in source.iterdir():
        if path.name != "tokenizer.json":
            try:
                os.link(path, folder / path.name)
            except OSError:  # on another file system
                shutil.copy(path, folder / path.name)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    write_json(folder / "tokenizer.json", tokenizer)
    return folder


def test_found_by_its_tokens(smollm2_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    result = llmkit.convert(
        with_rule(smollm2_checkpoint, folder, SAME), "gguf-q8", output=tmp_path, dry_run=True, memory="64MiB"
    )
    (note,) = [note for note in result.plan.notes if "the tokenizer splits text by a rule" in note]
    assert "smollm gives the same tokens on all" in note


def test_not_found(smollm2_checkpoint: Path, tmp_path: Path) -> None:
    folder = with_rule(smollm2_checkpoint, tmp_path, OTHER)
    with pytest.raises(UnsupportedError, match=r"no pre-tokenizer of llama\.cpp gives the tokens of this one"):
        llmkit.convert(folder, "gguf-q8", output=tmp_path / "x.gguf", dry_run=True)
    result = llmkit.convert(folder, "gguf-q8", output=tmp_path / "x.gguf", dry_run=True, tokenizer_pre="smollm")
    assert result.plan.architecture == "llama"
