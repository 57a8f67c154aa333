"""Results that are kept as they come: nothing is computed twice, and nothing is taken for what it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit import runtimes
from llmkit.cli import run
from llmkit.errors import EvaluationError, FormatError, LlmkitError, OutputError
from llmkit.evaluate.choices import Question, answer
from llmkit.evaluate.journal import Journal, facts_of, journal
from llmkit.progress import Silent
from llmkit.protocols import Session
from llmkit.runtimes.fake import FakeSession
from tests.runtimes import tiny_gguf
from tests.tinymodels import TinyLlama

TEXT = "In the beginning was the vocabulary, and every byte was a token; 3 x 7 = 21.\n" * 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    checkpoint = TinyLlama(dtype="F32").write(folder / "tiny")
    targets = ("gguf-f32", "gguf-q8_0", "gguf-q4_0")
    return [llmkit.convert(checkpoint, to, output=folder / f"{to}.gguf").path for to in targets]


class Counted:
    """Counts the passes of all sessions that are opened, and ends one of them with Ctrl-C."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: dict[str, int] = {}
        self.stop_at: int | None = None
        load = runtimes.load

        def counting(path: Path, **options: Any) -> Session:
            session = load(path, **options)
            each = session.each_logits

            def each_logits(ids: Sequence[int], **more: Any) -> Iterator[NDArray[np.float32]]:
                self.passes[session.info.name] = self.passes.get(session.info.name, 0) + 1
                if sum(self.passes.values()) == self.stop_at:
                    raise KeyboardInterrupt
                return each(ids, **more)

            monkeypatch.setattr(session, "each_logits", each_logits)
            return session

        monkeypatch.setattr(runtimes, "load", counting)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "results"
    with Journal(path) as one:
        section = one.about(model="m", n=1)
        assert section.get("a") is None
        section.put("a", value={"x": [1, 2.5, None]})
        section.about(more=True).put("a", value="another")
        assert section.get("a") == {"x": [1, 2.5, None]}
    with journal(path) as again:
        section = again.about(n=1, model="m")  # whatever the order
        assert section.get("a") == {"x": [1, 2.5, None]}
        assert section.about(more=True).get("a") == "another"
        assert section.get("b") is None
        assert again.about(n=2, model="m").get("a") is None
        with journal(again) as same:
            assert same is again
    with journal(None) as nothing:
        nothing.about().put("a", value=1)
        assert nothing.about().get("a") is None
        assert not nothing.is_kept


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "results"
    with Journal(path) as one:
        one.about().put("a", value=1)
        one.about().put("b", value=2)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_bytes(whole[:-cut])
        with Journal(path) as again:
            assert (again.about().get("a"), again.about().get("b")) == (1, None)
            again.about().put("c", value=3)
        with Journal(path) as again:
            assert [again.about().get(key) for key in "abc"] == [1, None, 3]


def test_a_header_without_its_line_end_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "results"
    Journal(path).__exit__(None, None, None)
    path.write_bytes(path.read_bytes()[:-1])
    with Journal(path) as one:
        one.about().put("a", value=float("-inf"))
    with Journal(path) as again:
        assert again.about().get("a") == float("-inf")


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results"
    header = b'{"format":"llmkit journal","version":1}\n'
    for content in (
        b"my thesis\n",
        b"{}\n",
        b"no newline",
        header.replace(b"1}", b"2}"),
        header + b"[1]\n",
        header + b'{"key":1,"value":1}\n',
        header + b"{\n",
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="results"):
            Journal(path)
        assert path.read_bytes() == content
    with pytest.raises(OutputError, match="no file"):
        Journal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="no file"):
        Journal(tmp_path / "pipe")
    with pytest.raises(OutputError, match="cannot be opened"):
        Journal(tmp_path / "absent" / "results")


def test_two_processes_do_not_share_one(tmp_path: Path) -> None:
    path = tmp_path / "results"
    code = f"from llmkit.evaluate.journal import Journal; Journal({str(path)!r})"
    with Journal(path):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another process keeps its results there" in found.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_models_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "a-00001-of-00002.gguf"
    file.write_bytes(b"1")
    (tmp_path / "a-00002-of-00002.gguf").write_bytes(b"2")
    found = facts_of(file)
    assert len(found) == 2
    (tmp_path / "a-00002-of-00002.gguf").write_bytes(b"22")
    assert facts_of(file) != found
    (tmp_path / "a-00002-of-00002.gguf").unlink()
    with pytest.raises(FormatError, match="a-00002-of-00002"):
        facts_of(file)


def test_a_journal_in_the_folder_of_a_model_is_no_part_of_it(tmp_path: Path) -> None:
    folder = TinyLlama(dtype="F32").write(tmp_path / "tiny")
    found = facts_of(folder)
    assert {Path(name).name for name, _, _ in found} >= {"config.json", "model.safetensors", "tokenizer.json"}
    for name in ("results", "README.md", "made-of-it.gguf"):
        (folder / name).write_bytes(b"x")
    assert facts_of(folder) == found
    (folder / "config.json").write_text("{}")
    assert facts_of(folder) != found


def test_precisions_are_told_apart(models: list[Path], text: Path, tmp_path: Path) -> None:
    found = []
    for full_precision in (False, True):
        with llmkit.load(models[0], n_context=64, n_threads=1, full_precision=full_precision) as session:
            found.append(llmkit.evaluate(session, text=text, context=64, chunks=2, resume=tmp_path / "r"))
    assert found[0].models[0].perplexity != found[1].models[0].perplexity


def test_an_interrupted_evaluation_goes_on(
    models: list[Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, *others = models
    options: dict[str, Any] = {"reference": reference, "text": text, "context": 64, "chunks": 4, "threads": 1}
    expected = llmkit.evaluate(others, **options)
    counted = Counted(monkeypatch)
    counted.stop_at = 8  # in the third window of three models
    part = llmkit.evaluate(others, **options, resume=tmp_path / "r")
    assert (part.interrupted, part.n_windows) == (True, 2)
    counted.passes.clear()
    counted.stop_at = None
    found = llmkit.evaluate(others, **options, resume=tmp_path / "r")
    assert counted.passes == {"gguf-f32": 2, "gguf-q8_0": 2, "gguf-q4_0": 2}
    assert not found.interrupted

    def plain(result: Any) -> Any:
        return [model.to_dict() | {"seconds": 0} for model in result.models]

    assert plain(found) == plain(expected)  # to the last bit

    counted.passes.clear()
    again = llmkit.evaluate(others, **options, resume=tmp_path / "r")
    assert counted.passes == {}
    assert plain(again) == plain(expected)
    # Another model beside them takes itself and the reference; more windows take all, once.
    llmkit.evaluate(others[:1], **options, resume=tmp_path / "s")
    counted.passes.clear()
    assert plain(llmkit.evaluate(others, **options, resume=tmp_path / "s")) == plain(expected)
    assert counted.passes == {"gguf-f32": 4, "gguf-q4_0": 4}
    counted.passes.clear()
    llmkit.evaluate(others, **(options | {"chunks": 5}), resume=tmp_path / "s")
    assert counted.passes == {"gguf-f32": 1, "gguf-q8_0": 1, "gguf-q4_0": 1}


def test_damaged_records_are_computed_again(models: list[Path], text: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"reference": models[0], "text": text, "context": 64, "chunks": 2, "threads": 1}
    expected = llmkit.evaluate(models[1], **options, resume=tmp_path / "r")
    header, *lines = (tmp_path / "r").read_text().splitlines()
    for wrong in (1, None, {}, {"surprises": "!", "tops": "", "kl": None}, {"surprises": "AAAA", "tops": "", "kl": ""}):
        damaged = [json.dumps(json.loads(line) | {"value": wrong}) for line in lines]
        (tmp_path / "r").write_text("\n".join([header, *damaged, ""]))
        found = llmkit.evaluate(models[1], **options, resume=tmp_path / "r")
        assert found.models[1].perplexity == expected.models[1].perplexity


def test_sessions_of_no_file_cannot_be_kept(text: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="comes from no file"):
        llmkit.evaluate(FakeSession(), text=text, context=64, resume=tmp_path / "r")


def test_ctrl_c_ends_all_models(models: list[Path], text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a reference they run one after the other."""
    counted = Counted(monkeypatch)
    counted.stop_at = 3
    found = llmkit.evaluate(models, text=text, context=64, chunks=4, threads=1)
    assert (found.interrupted, found.n_windows, len(found.models)) == (True, 2, 1)


def test_ctrl_c_before_the_second_model_keeps_the_first(
    models: list[Path], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    counted.stop_at = 3
    found = llmkit.evaluate(models, text=text, context=64, chunks=2, threads=1)
    assert (found.interrupted, found.n_windows, len(found.models)) == (True, 2, 1)


def test_questions_go_on_where_they_stopped(tmp_path: Path) -> None:
    asked = 0

    class Counting(FakeSession):
        def each_continuation(self, prefix: Any, continuations: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == 3:
                raise KeyboardInterrupt
            return super().each_continuation(prefix, continuations)

    questions = [Question(f"ab{n}", ("cd", "q"), 0) for n in range(4)]
    with Journal(tmp_path / "r") as results:
        kept = results.about(model="fake")
        part = answer(Counting(), questions, Silent(), kept)
        assert (part.n_questions, part.interrupted) == (2, True)
        asked = 10
        whole = answer(Counting(), questions, Silent(), kept)
        assert (whole.n_questions, whole.interrupted, asked) == (4, False, 12)
        assert whole == answer(Counting(), questions, Silent(), kept)
        assert asked == 12


def test_benchmarks_and_comparisons_are_kept(
    models: list[Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timing = ["bench", str(models[0]), "-p", "8", "-n", "4", "-r", "2", "--threads", "1", "--json"]
    assert run(["-q", *timing, "--resume", str(tmp_path / "r")]) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(llmkit.benchmark.sys, "executable", "/bin/false")
    assert run(["-q", *timing, "--resume", str(tmp_path / "r")]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert run(["-q", *timing, "-r", "3", "--resume", str(tmp_path / "r")]) == 1
    monkeypatch.undo()

    arguments = [
        *("compare", str(models[1]), "--reference", str(models[0]), "--text", str(text), "-c", "64", "--chunks", "2"),
        *("-p", "8", "-n", "4", "-r", "1", "--question", "Why?", "--threads", "1", "--json"),
    ]
    assert run(["-q", *arguments, "--resume", str(tmp_path / "c")]) == 0
    expected = json.loads(capsys.readouterr().out)
    counted = Counted(monkeypatch)
    monkeypatch.setattr(llmkit.benchmark.sys, "executable", "/bin/false")
    monkeypatch.setattr("llmkit.weights.compare_weights", None)
    monkeypatch.setattr("llmkit.comparison._answer", None)
    assert run(["-q", *arguments, "--resume", str(tmp_path / "c")]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert counted.passes == {}


def test_an_interrupted_comparison_shows_what_it_has(
    models: list[Path], text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = Counted(monkeypatch)
    counted.stop_at = 4
    arguments = [
        *("compare", str(models[1]), "--reference", str(models[0]), "--text", str(text), "-c", "64", "--chunks", "3"),
        *("-p", "8", "-n", "4", "--threads", "1"),
    ]
    assert run([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "interrupted" in err
    assert (found["interrupted"], found["windows"], len(found["models"])) == (True, 1, 2)
    assert found["models"][0]["speeds"] == {}

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmkit.comparison.bench", interrupt)
    assert run(["-q", *arguments]) == 0
    assert "gguf-q8_0" in capsys.readouterr().out


def test_a_journal_of_another_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_gguf.write_llama(tmp_path / "m.gguf")
    assert run(["bench", str(model), "--resume", str(model)]) == 1
    assert "is no journal of this version" in capsys.readouterr().err
    with pytest.raises(LlmkitError):
        llmkit.bench(model, resume=model)
