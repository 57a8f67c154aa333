"""`llmkit.bench` and `llmkit bench`: what is measured, and what goes wrong. No times are asserted."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit import benchmark
from llmkit.cli import run
from llmkit.errors import EvaluationError, LlmkitError
from llmkit.evaluate import speed
from llmkit.runtimes import load
from tests.tinymodels import TinyLlama

FEW = ["-p", "16", "-n", "4", "-r", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    checkpoint = TinyLlama(dtype="F32").write(folder / "tiny")
    return {
        "checkpoint": checkpoint,
        "gguf": llmkit.convert(checkpoint, "gguf-q8_0", output=folder / "tiny.gguf").path,
        "onnx": llmkit.convert(checkpoint, "onnx-int8", output=folder / "onnx").path,
    }


def test_every_engine(models: dict[str, Path]) -> None:
    found = llmkit.bench(
        models.values(), prompt=(8, 16), generated=(4,), depths=(0, 24), repetitions=2, threads=1, device="cpu"
    )
    assert [model.name for model in found.models] == ["tiny", "tiny.gguf", "onnx"]
    for model in found.models:
        names = [test.name for test in model.tests]
        assert names == ["pp8", "pp16", "tg4", "pp8 @ d24", "pp16 @ d24", "tg4 @ d24"]
        assert all(len(test.runs) == 2 and min(test.runs) > 0 for test in model.tests)
        assert model.load_seconds > 0
        assert model.first_token_seconds
        assert model.peak_resident
        assert model.peak_resident > 1e7
        assert model.n_threads == 1
    sizes = [model.size for model in found.models]
    assert sizes[1] == models["gguf"].stat().st_size
    assert sizes[0] > 2 * sizes[1]
    assert found.cpu
    assert found.versions["llmkit"] == llmkit.__version__


def test_forms_of_output(models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-q", "bench", str(models["gguf"]), *FEW]
    assert run(arguments) == 0
    head, *rows, machine = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["model", "size", "engine"]
    assert ["pp16" in rows[0], "tg4" in rows[1], len(rows)] == [True, True, 2]
    assert "runs: 2" in machine
    assert run([*arguments, "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["test"] for row in table] == ["pp16", "tg4"]
    assert run([*arguments, "--md"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("| ---")
    assert len(lines) == 4
    assert run([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [test["name"] for test in result["models"][0]["tests"]] == ["pp16", "tg4"]
    assert result["models"][0]["tests"][0]["mean"] > 0


def test_what_is_timed(models: dict[str, Path]) -> None:
    """A prompt passes whole behind what is in the cache, and tokens pass one by one."""
    with load(models["gguf"], n_context=64, n_threads=1) as session:
        tokens = session.tokenize("every byte was a token; " * 10)
        for depth, turn in ((0, 1), (20, 1), (20, 2)):
            assert speed.seconds(session, speed.Test(16, 0, depth), tokens, turn) > 0
            assert session.stats.n_prompt - session.stats.n_reused == 16
            assert session.stats.n_reused == depth
        assert speed.seconds(session, speed.Test(0, 5, 20), tokens, 1) > 0
        assert len(session._context.cached) == 26  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": (-1,)}, "prompt: numbers of tokens between 0 and"),
        ({"depths": (1 << 30,)}, "depths: numbers of tokens"),
        ({"prompt": (0,), "generated": (0,)}, "there is nothing to measure"),
        ({"repetitions": 0}, "repetitions is 0"),
    ],
)
def test_numbers_that_cannot_be(models: dict[str, Path], options: dict[str, object], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        llmkit.bench(models["gguf"], **options)  # type: ignore[arg-type]


def test_lists_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "x", "-p", "a,b"]) == 2
    assert "'a,b' is not a list of numbers" in capsys.readouterr().err


def test_errors_of_the_other_process_come_out(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(LlmkitError, match=r"broken\.gguf"):
        llmkit.bench(path)


def test_a_process_that_dies(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def started_too_late(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        process = start(*arguments, **options)
        process.wait()  # so that the request finds nobody who reads it
        return process

    monkeypatch.setattr(benchmark.sys, "executable", "/bin/true")
    monkeypatch.setattr(benchmark.subprocess, "Popen", started_too_late)
    with pytest.raises(EvaluationError, match=r"tiny\.gguf: the process that ran it ended with status 0"):
        llmkit.bench(models["gguf"])


def test_ctrl_c_keeps_what_is_complete(models: dict[str, Path]) -> None:
    class Interrupting:
        def __init__(self) -> None:
            self.count = 0

        def start(self, title: str, total: int, unit: str = "B") -> None: ...

        def advance(self, amount: int, label: str = "") -> None:
            self.count += 1
            if self.count == 3:
                raise KeyboardInterrupt

        def finish(self) -> None: ...

        def abort(self) -> None: ...

    found = llmkit.bench(
        [models["gguf"]] * 2, prompt=(8,), generated=(4,), repetitions=2, threads=1, progress=Interrupting()
    )
    (model,) = found.models
    assert model.interrupted
    assert [(test.name, len(test.runs)) for test in model.tests] == [("pp8", 2), ("tg4", 1)]
    assert model.peak_resident is None


def test_nothing_is_imported_from_the_current_folder(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a stranger's model."""
    for name in ("llama_cpp", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nraise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    assert llmkit.bench(models["gguf"], prompt=(8,), generated=(), repetitions=1, threads=1).models[0].tests
    assert not (tmp_path / "executed").exists()


def test_ctrl_c_keeps_the_models_that_are_through(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run_one = benchmark._run
    names = []

    def interrupted(model: Any, *more: Any) -> Any:
        names.append(model.name)
        if len(names) == 2:
            raise KeyboardInterrupt  # as before the second model's first run
        return run_one(model, *more)

    monkeypatch.setattr(benchmark, "_run", interrupted)
    found = llmkit.bench([models["gguf"], models["onnx"]], prompt=(8,), generated=(), repetitions=1, threads=1)
    assert (len(found.models), found.interrupted) == (1, True)
