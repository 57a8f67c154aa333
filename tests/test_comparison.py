"""`llmkit compare`: quality, speed, weights and answers of real models together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmkit
from llmkit.cli import run
from llmkit.errors import EvaluationError
from llmkit.runtimes.fake import FakeSession
from tests.tinymodels import TinyLlama

TEXT = "In the beginning was the vocabulary, and every byte was a token; 3 x 7 = 21.\n" * 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(TEXT)
    checkpoint = TinyLlama(dtype="F32").write(folder / "tiny")
    found = {"checkpoint": checkpoint, "text": folder / "text.txt"}
    for target in ("gguf-q8_0", "gguf-q4_0", "onnx-int8"):
        found[target] = llmkit.convert(checkpoint, target, output=folder / target.replace("gguf-", "tiny.")).path
    for name in ("q8_0", "q4_0"):
        found[f"gguf-{name}"] = found[f"gguf-{name}"].rename(folder / f"tiny-{name}.gguf")
    return found


def test_everything_together(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(models[name]) for name in ("gguf-q8_0", "gguf-q4_0", "onnx-int8")]
    common = ["--text", str(models["text"]), "-c", "64", "--chunks", "2", "-p", "16", "-n", "4", "-r", "1"]
    common += ["--threads", "1", "--question", "Why?", "--reference", str(models["checkpoint"])]
    report = tmp_path / "out.html"
    assert run(["-q", "compare", *names, *common, "--report", str(report)]) == 0
    out = capsys.readouterr().out
    head, reference, *rows = out.splitlines()[:5]
    assert head.split()[:2] == ["model", "MB"]
    assert "reference" in reference
    assert [row.split()[0] for row in rows] == ["tiny-q8_0.gguf", "tiny-q4_0.gguf", "onnx-int8"]
    assert "no smaller model has a smaller divergence" in out
    page = report.read_text()
    assert "Error of the weights: tiny-q4_0.gguf" in page
    assert "<h2>Why?</h2>" in page
    assert run(["-q", "compare", *names, *common, "--report", str(report)]) == 1
    assert "exists" in capsys.readouterr().err
    assert run(["-q", "compare", *names, *common, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    kl = [model["kl"]["value"] for model in found[1:]]
    assert kl[0] < kl[1]
    assert found[1]["weight_errors"]["blk.0.attn_q.weight"] < found[2]["weight_errors"]["blk.0.attn_q.weight"]
    assert found[3]["weight_errors"] == {}
    assert set(found[2]["speeds"]) == {"pp16", "tg4"}
    assert run(["-q", "compare", *names[:1], *common, "-p", "0", "-n", "0", "--md"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | MB | perplexity")
    assert "pp" not in lines[0]


def test_what_cannot_be_compared(models: dict[str, Path]) -> None:
    with pytest.raises(EvaluationError, match=r"given twice: tiny-q8_0\.gguf"):
        llmkit.compare([models["gguf-q8_0"], models["gguf-q8_0"]], text=models["text"], context=64)
    with pytest.raises(EvaluationError, match="open sessions cannot be compared"):
        llmkit.compare([FakeSession()], text=models["text"], context=64)
