"""`llmkit.compare_weights` and `llmkit eval --weights`: errors of stored weights against plain NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.cli import run
from llmkit.errors import EvaluationError
from llmkit.formats.gguf import open_gguf
from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from llmkit.weights import compare_weights
from tests.tinymodels import TinyLlama


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return TinyLlama(dtype="F32", bias=True).write(tmp_path / "tiny")


def values(path: Path, name: str) -> np.ndarray:
    with open_gguf(path) as file:
        info = file.tensors[name]
        raw = np.array(file.raw(name))
    form = scheme(TensorType[info.dtype])
    out = np.empty((int(np.prod(info.shape[:-1])), info.shape[-1]), np.float32)
    form.decode(raw.reshape(len(out), -1), out)
    return out.astype(np.float64)


@pytest.mark.parametrize("target", ["gguf-q4_0", "gguf-q8_0", "gguf-q4_k_m", "gguf-bf16"])
@pytest.mark.parametrize("memory", ["1GiB", "200KB"])
def test_against_numpy(checkpoint: Path, tmp_path: Path, target: str, memory: str) -> None:
    file = llmkit.convert(checkpoint, target, output=tmp_path / "a.gguf").path
    exact = llmkit.convert(checkpoint, "gguf-f32", output=tmp_path / "b.gguf").path
    for source in (checkpoint, exact):
        found = compare_weights(file, source, threads=2, memory=memory)
        by_name = {t.name: t for t in found.tensors}
        with open_gguf(file) as opened:
            assert set(by_name) == set(opened.tensors)
        for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "token_embd.weight", "blk.1.attn_q.bias"):
            if "weight" not in name:
                assert by_name[name].relative == by_name[name].largest == 0
                continue
            a, b = values(file, name), values(exact, name)
            t = by_name[name]
            assert t.n_weights == a.size
            np.testing.assert_allclose(t.relative, np.sqrt(((a - b) ** 2).sum() / (b**2).sum()), rtol=1e-4)
            np.testing.assert_allclose(t.cosine, (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), atol=2e-6)
            np.testing.assert_allclose(t.largest, np.abs(a - b).max() / np.sqrt((b**2).mean()), rtol=1e-4)


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(llmkit.convert(checkpoint, "gguf-q4_0", output=tmp_path / "a.gguf").path)
    assert run(["eval", "--weights", file, str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "blk.0.attn_q.weight" in out
    assert "Q4_0" in out
    assert run(["-q", "eval", "--weights", file, str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"][0]["relative_rms_error"] >= 0
    for wrong, said in (
        ([file], "--weights takes two models"),
        ([file, str(checkpoint), "-c", "64"], "--context does not go with --weights"),
    ):
        assert run(["eval", "--weights", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_files_of_other_models(checkpoint: Path, tmp_path: Path) -> None:
    file = llmkit.convert(checkpoint, "gguf-q8_0", output=tmp_path / "a.gguf").path
    for other, message in (
        (TinyLlama(n_layers=1, bias=True), r"has a tensor 'blk\.1\..*', which .* does not have"),
        (TinyLlama(n_layers=3, bias=True), r"has no tensor 'blk\.2\..*', which"),
        (TinyLlama(n_embd=128, n_heads=2, bias=True), r"tensor '.*' is \(.*256.*\), and \(.*128.*\) in"),
    ):
        source = other.write(tmp_path / message[:20].replace("\\", "").replace("/", ""))
        with pytest.raises(EvaluationError, match=message):
            compare_weights(file, source)
