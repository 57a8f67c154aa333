"""`llmkit.evaluate` and `llmkit eval`: against transformers, across engines, and what goes wrong."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.cli import run
from llmkit.errors import EvaluationError, FormatError
from llmkit.runtimes.fake import FakeSession
from tests import tinymodels
from tests.tinymodels import TinyLlama

TEXT = "In the beginning was the vocabulary, and every byte was a token; 3 x 7 = 21.\n" * 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same tiny model as a checkpoint, as GGUF and as ONNX."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = TinyLlama(dtype="F32").write(folder / "tiny")
    found = {"checkpoint": checkpoint}
    for target in ("gguf-f32", "gguf-q8_0", "onnx-fp32", "onnx-int8"):
        suffix = ".gguf" if "gguf" in target else ""
        found[target] = llmkit.convert(checkpoint, target, output=folder / f"tiny-{target}{suffix}").path
    return found


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


@pytest.mark.parametrize("protocol", ["sliding", "llama.cpp"])
def test_every_engine_beside_the_original(models: dict[str, Path], text: Path, protocol: str) -> None:
    others = [models[name] for name in ("gguf-f32", "gguf-q8_0", "onnx-fp32", "onnx-int8")]
    found = llmkit.evaluate(
        others, reference=models["checkpoint"], text=text, protocol=protocol, context=64, chunks=3, threads=1
    )
    original, gguf, q8_0, onnx, int8 = found.models
    assert (found.reference, found.n_windows, found.interrupted) == ("tiny", 3, False)
    assert original.divergence is None
    kl = []
    for model in (gguf, q8_0, onnx, int8):
        assert model.divergence is not None
        assert model.n_tokens == original.n_tokens
        kl.append(model.divergence.mean_kl.value)
    assert kl[0] < 1e-4  # llama.cpp keeps keys and values in float16
    assert kl[2] < 1e-6
    assert kl[0] < kl[1] < 0.1
    assert kl[2] < kl[3] < 0.1
    assert math.isclose(onnx.perplexity.value, original.perplexity.value, rel_tol=1e-5)


def test_the_numbers_are_those_of_the_definition(models: dict[str, Path], text: Path) -> None:
    found = llmkit.evaluate(
        models["onnx-int8"], reference=models["onnx-fp32"], text=text, context=64, chunks=2, threads=1
    )
    surprises, kl = [], []
    with (
        llmkit.load(models["onnx-fp32"], n_threads=1, device="cpu") as one,
        llmkit.load(models["onnx-int8"], n_threads=1, device="cpu") as other,
    ):
        ids = one.tokenize(TEXT)
        for window, first in ((ids[:64], 1), (ids[32:96], 32)):
            p, q = (log_softmax(session.logits(window)) for session in (one, other))
            for i in range(first, 64):
                surprises.append(-q[i - 1, window[i]])
                kl.append((np.exp(p[i - 1]) * (p[i - 1] - q[i - 1])).sum())
        n_bytes = len(one.detokenize(ids[1:96]).encode())
    measured = found.models[1]
    assert measured.n_tokens == len(surprises) == 95
    assert math.isclose(measured.perplexity.value, math.exp(np.mean(surprises)), rel_tol=1e-5)
    assert measured.divergence is not None
    assert math.isclose(measured.divergence.mean_kl.value, np.mean(kl), rel_tol=1e-3)
    assert math.isclose(measured.bits_per_byte, sum(surprises) / math.log(2) / n_bytes, rel_tol=1e-5)


def test_without_a_reference_each_runs_by_itself(models: dict[str, Path], text: Path) -> None:
    found = llmkit.evaluate([models["gguf-f32"], FakeSession()], text=text, context=64, chunks=2, threads=1)
    assert [model.name for model in found.models] == ["tiny-gguf-f32.gguf", "fake"]
    assert all(model.divergence is None and model.bits_per_byte > 0 for model in found.models)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(text: Path) -> None:
    class Uniform(FakeSession):
        def logits(self, ids: Sequence[int], *, at_a_time: int | None = None) -> NDArray[np.float32]:
            return np.zeros((len(ids), 256), np.float32)

    (model,) = llmkit.evaluate(Uniform(), text=text, context=64).models
    assert math.isclose(model.perplexity.value, 256, rel_tol=1e-6)
    assert math.isclose(model.bits_per_byte, 8, rel_tol=1e-6)


def test_the_text_in_every_python() -> None:
    found = llmkit.evaluate(FakeSession(), context=32)
    assert (found.text, found.n_windows) == ("pydoc_data.topics", 32)


def test_the_command(models: dict[str, Path], text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", str(models["gguf-q8_0"]), "--reference", str(models["gguf-f32"]), "--text", str(text)]
    arguments += ["-c", "64", "--chunks", "2", "--threads", "1"]
    assert run(arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("2 windows of 64 tokens of ")
    assert "reference" in out
    assert "same most likely" in out
    assert "tiny-gguf-f32.gguf, tiny-gguf-q8_0.gguf: done in" in err
    assert run(["-q", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in result["models"]] == ["tiny-gguf-f32.gguf", "tiny-gguf-q8_0.gguf"]
    assert set(result["models"][1]["divergence"]["kl"]["percentiles"]) >= {"100", "99.9", "50", "0"}


# What goes wrong


def test_vocabularies_that_differ(models: dict[str, Path], text: Path) -> None:
    with pytest.raises(EvaluationError, match=r"fake cannot be compared with tiny-gguf-f32\.gguf: .*320 and 256"):
        llmkit.evaluate(FakeSession(), reference=models["gguf-f32"], text=text, context=64, threads=1)


def test_tokens_that_differ(text: Path) -> None:
    class Shifted(FakeSession):
        def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
            return [byte ^ (i > 9) for i, byte in enumerate(text.encode())]

        @property
        def info(self) -> Any:
            from dataclasses import replace

            return replace(super().info, name="shifted")

    with pytest.raises(EvaluationError, match="the text becomes other tokens, from number 10 on"):
        llmkit.evaluate(Shifted(), reference=FakeSession(), text=text, context=64)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "are not all numbers"), (-np.inf, "leave no probability")])
def test_logits_that_are_no_numbers(text: Path, value: float, message: str) -> None:
    class Broken(FakeSession):
        def logits(self, ids: Sequence[int], *, at_a_time: int | None = None) -> NDArray[np.float32]:
            rows = np.zeros((len(ids), 256), np.float32)
            rows[5, : 255 if value < 0 else 1] = value
            return rows

    with pytest.raises(EvaluationError, match=f"fake: its logits {message}"):
        llmkit.evaluate(Broken(), text=text, context=64)


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for content, error, message in (
        (b" \n", EvaluationError, "the text is empty"),
        (b"too short", EvaluationError, "the text has 9 tokens, and 512 are needed"),
        (b"\xff" * 600, FormatError, "not UTF-8 text: byte 0xff at 0"),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=message):
            llmkit.evaluate(FakeSession(), text=path)
    with pytest.raises(FormatError):
        llmkit.evaluate(FakeSession(), text=tmp_path / "missing")


def test_a_reference_that_is_missing(models: dict[str, Path], text: Path) -> None:
    with pytest.raises(llmkit.LlmkitError, match="no such file or folder"):
        llmkit.evaluate(models["gguf-f32"], reference="./missing.gguf", text=text)


def test_ctrl_c_keeps_what_is_complete(text: Path) -> None:
    class Interrupted(FakeSession):
        count = 0

        def each_logits(
            self, ids: Sequence[int], *, skip: int = 0, at_a_time: int | None = None
        ) -> Iterator[NDArray[np.float32]]:
            self.count += 1
            if self.count == 3:
                raise KeyboardInterrupt
            return super().each_logits(ids, skip=skip, at_a_time=at_a_time)

    found = llmkit.evaluate(Interrupted(), text=text, context=64)
    assert (found.interrupted, found.n_windows) == (True, 2)
    assert found.models[0].n_tokens == 63 + 32


def test_memory_with_a_large_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under 1 GB above what the models take, which run a prompt first."""
    monkeypatch.setattr(tinymodels, "N_VOCAB", 262_144)
    checkpoint = TinyLlama(dtype="F32", tied=True, n_embd=64, n_ff=64).write(tmp_path / "m")
    models = [
        str(llmkit.convert(checkpoint, "gguf-q8_0", output=tmp_path / "m.gguf").path),
        str(llmkit.convert(checkpoint, "onnx-int8", output=tmp_path / "onnx").path),
    ]
    code = f"""
import llmkit
from pathlib import Path

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

sessions = [llmkit.load(path, n_context=512, n_threads=2) for path in {models!r}]
for session in sessions:
    list(session.generate([1, 2, 3], llmkit.SamplingOptions(temperature=0, max_tokens=1)))
before = peak()
llmkit.evaluate(sessions[1:], reference=sessions[0], context=512, chunks=2)
print(peak() - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) < 1e9
    assert int(found) > 64 << 20  # the logits of one pass: it is what is measured
