"""References stored in little room: divergences from them are those from the model, but for a small error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.cli import run
from llmkit.errors import EvaluationError, FormatError, LlmkitError, OutputError
from llmkit.evaluate.scores import Scores
from llmkit.evaluate.stored import KEPT, SAMPLED, About, Recorder, compress, divergences, read_stored, store
from llmkit.evaluate.windows import Window
from llmkit.runtimes.fake import FakeSession
from tests.tinymodels import TinyLlama

Rows = NDArray[np.float32]
TEXT = "In the beginning was the vocabulary, and every byte was a token; 3 x 7 = 21.\n" * 12


def random_rows(n: int, n_vocab: int, spread: float, seed: int) -> Rows:
    return np.random.default_rng(seed).normal(0, spread, (n, n_vocab)).astype(np.float32)


def totals_of(logits: Rows) -> NDArray[np.float64]:
    largest = logits.max(1).astype(np.float64)
    found: NDArray[np.float64] = largest + np.log(np.exp(logits - largest[:, None]).sum(1, dtype=np.float64))
    return found


def exact(p: Rows, q: Rows) -> NDArray[np.float64]:
    one, other = (x.astype(np.float64) - totals_of(x)[:, None] for x in (p, q))
    found: NDArray[np.float64] = (np.exp(one) * (one - other)).sum(1)
    return found


def stored(p: Rows, q: Rows, first_seed: int = 0) -> NDArray[np.float64]:
    totals = totals_of(p)
    parts = [compress(row, float(total), first_seed + i) for i, (row, total) in enumerate(zip(p, totals, strict=True))]
    tokens, logarithms = (np.stack(part) for part in zip(*parts, strict=True))
    assert tokens.shape == logarithms.shape == (len(p), KEPT + SAMPLED)
    return divergences(tokens, logarithms, q, totals_of(q))


@pytest.mark.parametrize(("spread", "noise"), [(1.0, 0.1), (3.0, 0.3), (3.0, 1.0), (6.0, 0.05)])
def test_the_mean_is_near(spread: float, noise: float) -> None:
    """Flat distributions, whose likeliest tokens are a small part of all, and steep ones."""
    p = random_rows(300, 5000, spread, seed=1)
    q = p + random_rows(300, 5000, noise, seed=2)
    found, expected = stored(p, q), exact(p, q)
    assert found.mean() == pytest.approx(expected.mean(), rel=0.02)
    assert (found >= 0).all()
    assert np.abs(found / expected - 1).mean() < 0.25  # of a single token


def test_samples_have_no_bias() -> None:
    p = random_rows(1, 5000, 1.0, seed=1)
    q = p + random_rows(1, 5000, 0.5, seed=2)
    found = [stored(p, q, first_seed=seed)[0] for seed in range(2000)]
    error = float(np.std(found)) / len(found) ** 0.5
    assert abs(np.mean(found) - exact(p, q)[0]) < 4 * error
    assert error < 0.01 * exact(p, q)[0]


def test_identities() -> None:
    p = random_rows(20, 3000, 2.0, seed=1)
    np.testing.assert_allclose(stored(p, p), 0, atol=1e-9)
    shifted = (p + np.float32(3)).astype(np.float32)
    np.testing.assert_allclose(stored(p, shifted), 0, atol=1e-9)


@pytest.mark.parametrize("n_vocab", [2, 100, KEPT, KEPT + SAMPLED])
def test_small_vocabularies(n_vocab: int) -> None:
    p = random_rows(50, n_vocab, 2.0, seed=1)
    q = p + random_rows(50, n_vocab, 0.5, seed=2)
    p[:, 0] = q[:, 0] = -np.inf  # a token that cannot be
    if n_vocab == 2:
        np.testing.assert_allclose(stored(p, q), 0, atol=1e-9)
        return
    with np.errstate(invalid="ignore"):
        one, other = (x.astype(np.float64) - totals_of(x)[:, None] for x in (p, q))
        expected = np.where(np.isneginf(one), 0, np.exp(one) * (one - other)).sum(1)
    np.testing.assert_allclose(stored(p, q), expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    checkpoint = TinyLlama(dtype="F32").write(folder / "tiny")
    targets = {"gguf-f32": "gguf-f32.gguf", "gguf-q8_0": "gguf-q8_0.gguf", "onnx-int8": "onnx-int8"}
    return {
        "checkpoint": checkpoint,
        **{
            to: llmkit.convert(checkpoint, to, output=folder / f"{to}{'.gguf' * ('gguf' in to)}").path for to in targets
        },
    }


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("protocol", ["sliding", "llama.cpp"])
def test_models_compare_with_it_as_with_the_model(
    models: dict[str, Path], text: Path, tmp_path: Path, protocol: str
) -> None:
    options: dict[str, Any] = {"text": text, "context": 64, "protocol": protocol, "threads": 1}
    others = [models["gguf-q8_0"], models["onnx-int8"]]
    expected = llmkit.evaluate(others, reference=models["checkpoint"], **options)
    alone = llmkit.evaluate(models["checkpoint"], **options, save_reference=tmp_path / "r.safetensors")
    found = llmkit.evaluate(others, reference=tmp_path / "r.safetensors", **options)
    assert found.reference == "tiny"
    assert found.n_windows == expected.n_windows > 3
    original, *rest = found.models
    assert "stored" in original.engine
    assert original.perplexity == expected.models[0].perplexity == alone.models[0].perplexity
    assert original.bits_per_byte == pytest.approx(expected.models[0].bits_per_byte)
    for one, other in zip(rest, expected.models[1:], strict=True):
        assert one.perplexity == other.perplexity
        assert one.divergence is not None
        assert other.divergence is not None
        assert one.divergence.mean_kl.value == pytest.approx(other.divergence.mean_kl.value, rel=0.02)
        for percentage in (50.0, 90.0, 99.0):
            at = one.divergence.kl_percentiles[percentage]
            assert at == pytest.approx(other.divergence.kl_percentiles[percentage], rel=0.1)
        assert one.divergence.same_top == other.divergence.same_top
        assert one.divergence.rms_delta_p.value == pytest.approx(other.divergence.rms_delta_p.value)
    part = tmp_path / "part.safetensors"
    llmkit.evaluate(models["checkpoint"], **options, chunks=2, save_reference=part)
    assert llmkit.evaluate(others, reference=part, **options).n_windows == 2  # as many as it has
    fewer = llmkit.evaluate(others, reference=tmp_path / "r.safetensors", **options, chunks=2)
    assert (fewer.n_windows, fewer.models[0].n_tokens) == (2, fewer.models[1].n_tokens)


def test_stored_beside_others(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """While models are compared with it, and although its results are kept already."""
    options: dict[str, Any] = {"text": text, "context": 64, "chunks": 3, "threads": 1, "resume": tmp_path / "j"}
    reference, other, path = models["gguf-f32"], models["gguf-q8_0"], tmp_path / "r.safetensors"
    llmkit.evaluate(other, reference=reference, **options)
    expected = llmkit.evaluate(other, reference=reference, **options, save_reference=path)
    found = llmkit.evaluate(other, reference=path, **options)
    again = llmkit.evaluate(other, reference=path, **options)
    assert found.models[1].divergence == again.models[1].divergence
    one, two = found.models[1].divergence, expected.models[1].divergence
    assert one is not None
    assert two is not None
    assert one.mean_kl != two.mean_kl  # not what the journal has of the model itself
    assert one.mean_kl.value == pytest.approx(two.mean_kl.value, rel=0.02)


def test_on_the_command_line(
    models: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.safetensors"
    common = ["-c", "64", "--text", str(text), "--threads", "1"]
    save = ["-q", "eval", str(models["gguf-f32"]), *common, "--save-reference", str(path)]
    assert run(save) == 0
    assert run(save) == 1
    assert "exists" in capsys.readouterr().err
    assert run([*save, "--overwrite"]) == 0
    capsys.readouterr()
    assert run(["-q", "eval", str(models["gguf-q8_0"]), *common, "--reference", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in found["models"]] == ["gguf-f32", "gguf-q8_0.gguf"]
    assert found["models"][1]["divergence"]["kl"]["value"] > 0
    assert found["models"][0]["bits_per_byte"] > 0


def test_ctrl_c_stores_what_is_complete(text: Path, tmp_path: Path) -> None:
    class Interrupted(FakeSession):
        count = 0

        def each_logits(
            self, ids: Sequence[int], *, skip: int = 0, at_a_time: int | None = None
        ) -> Iterator[NDArray[np.float32]]:
            self.count += 1
            if self.count == 3:
                raise KeyboardInterrupt
            return super().each_logits(ids, skip=skip, at_a_time=at_a_time)

    llmkit.evaluate(Interrupted(), text=text, context=64, save_reference=tmp_path / "r.safetensors")
    found = read_stored(tmp_path / "r.safetensors")
    assert len(found.windows) == 2
    assert len(found.tokens) == 63 + 32


def test_what_does_not_go_together(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    options: dict[str, Any] = {"text": text, "context": 64, "threads": 1}
    llmkit.evaluate(models["gguf-f32"], **options, save_reference=path)
    other = tmp_path / "other.txt"
    other.write_text("Something else. " * 60)
    for wrong in ({"text": other}, {"context": 32}, {"protocol": "llama.cpp"}):
        with pytest.raises(EvaluationError, match=r"windows of 64 tokens of .*text\.txt, protocol sliding"):
            llmkit.evaluate(models["gguf-q8_0"], reference=path, **(options | wrong))
    with pytest.raises(EvaluationError, match="it has 256 tokens, and the reference 320"):
        llmkit.evaluate(FakeSession(), reference=path, **options)
    with pytest.raises(EvaluationError, match="name models to compare"):
        llmkit.evaluate([], reference=path, **options)
    with pytest.raises(EvaluationError, match="name the model"):
        llmkit.evaluate([models["gguf-f32"], models["gguf-q8_0"]], **options, save_reference=tmp_path / "x.safetensors")
    with pytest.raises(EvaluationError, match=r"a stored reference is a file \*\.safetensors"):
        llmkit.evaluate(models["gguf-f32"], **options, save_reference=tmp_path / "r.bin")
    with pytest.raises(OutputError):
        llmkit.evaluate(models["gguf-f32"], **options, save_reference=tmp_path / "absent" / "x.safetensors")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    recorder = Recorder()
    rows = random_rows(12, 400, 2.0, seed=1)
    recorder.add(rows, totals_of(rows))
    windows = [Window(list(range(8)), 2), Window(list(range(8)), 2)]
    about = About("name", "engine", 400, "text", "sliding", 8)
    scores = Scores(np.ones(12), np.zeros(12, np.int64))
    store(path, about, windows, [6, 6], scores, recorder, overwrite=False)
    good = path.read_bytes()
    found = read_stored(path)
    assert (found.about, found.windows, found.n_bytes) == (about, windows, [6, 6])
    np.testing.assert_allclose(found.divergences(3, rows[3:9], totals_of(rows[3:9])), 0, atol=1e-9)
    length = int.from_bytes(good[:8], "little")
    for old, new in (
        (b'"n_vocab":"400"', b'"n_vocab":"4OO"'),
        (b'"surprises"', b'"surprised"'),
        (b'"dtype":"F64"', b'"dtype":"I64"'),
        (b"[12,192]", b"[192,12]"),
        (b'"shape":[2]', b'"shape":[ ]'),
    ):
        assert old in good[: 8 + length]
        path.write_bytes(good.replace(old, new))
        with pytest.raises(FormatError, match=r"reference|takes 4 bytes"):
            read_stored(path)
    random = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(good)
        for at in random.integers(0, len(good), 3):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged if random.random() < 0.8 else damaged[: random.integers(len(good))])
        try:
            read = read_stored(path)
            read.divergences(0, rows, totals_of(rows))
        except LlmkitError:
            continue
