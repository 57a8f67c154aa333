"""`llmkit embed` on all-MiniLM-L6-v2."""

from __future__ import annotations

import json
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.cli import run


def test_lines(minilm_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "embed", str(minilm_gguf), "-p", "one", "-p", "two", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    vectors = np.array([line.split() for line in out.splitlines()], np.float32)
    assert vectors.shape == (2, 384)
    with llmkit.load(minilm_gguf, n_threads=1) as session:
        np.testing.assert_allclose(vectors, [session.embed("one"), session.embed("two")], atol=1e-6)


def test_json_of_standard_input(
    minilm_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO("eins\n\nzwei ü\n".encode()), "utf-8"))
    arguments = ["embed", str(minilm_gguf), "--json", "--no-normalize", "--pooling", "cls", "--threads", "1"]
    assert run(arguments) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["text"] for entry in found] == ["eins", "", "zwei ü"]
    assert all(len(entry["embedding"]) == 384 for entry in found)
    assert np.linalg.norm(found[0]["embedding"]) > 1.5


def test_model_that_chats_not(minilm_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(minilm_gguf), "-p", "Once"]) == 1
    assert "is an encoder" in capsys.readouterr().err
