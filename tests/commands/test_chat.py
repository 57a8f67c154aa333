"""`llmkit chat` and `llmkit generate`: on a session without a model, and once each on a real one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmkit import cli, runtimes
from llmkit.runtimes.fake import FakeSession


class Runs:
    """Runs command lines on a fake session; remembers it and how it was loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path) -> None:
        self._monkeypatch, self._capsys, self._model = monkeypatch, capsys, model
        self.make = FakeSession
        self.session: FakeSession
        self.loaded: dict[str, Any] = {}
        model.write_bytes(b"GGUF")
        monkeypatch.setattr(runtimes, "load", self._load)

    def _load(self, path: Path, **options: Any) -> FakeSession:
        self.loaded = {"path": path, **options}
        self.session = self.make()
        return self.session

    def __call__(self, command: str, *arguments: str, stdin: str | bytes = "") -> tuple[int, str, str]:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        status = cli.run([command, str(self._model), *arguments])
        out, err = self._capsys.readouterr()
        return status, out, err


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Runs:
    return Runs(monkeypatch, capsys, tmp_path / "model.gguf")


def test_one_answer(runs: Runs) -> None:
    status, out, err = runs("chat", "-p", "hello")
    assert (status, out) == (0, "You said: hello\n")
    assert err.startswith("prompt ")
    assert "generated 15 tokens" in err


def test_quiet_leaves_only_the_answer(runs: Runs) -> None:
    assert runs("chat", "-p", "hello", "-q") == (0, "You said: hello\n", "")
    assert runs("generate", "-p", "hello", "-q") == (0, "You said: hello\n", "")


def test_quiet_does_not_mute_replies_to_commands(runs: Runs) -> None:
    status, out, err = runs("chat", "-q", stdin="/help\none\n/stats\n/nosuch\n/regen\n")
    assert (status, out) == (0, "You said: one\n" * 2)
    lines = err.splitlines()
    assert lines[0].startswith("  /exit ")
    assert any(line.startswith("context: ") for line in lines)
    assert lines[-1].startswith("There is no command /nosuch")  # and no statistics at the end


def test_prompt_from_standard_input(runs: Runs) -> None:
    status, out, _ = runs("chat", "-p", "-", stdin="first line\nlast line é\n")
    assert (status, out) == (0, "You said: last line é\n")
    assert runs.session.calls[0][0][0]["content"] == "first line\nlast line é"


def test_help_tells_what_model_and_prompt_are(runs: Runs) -> None:
    for command in ("chat", "generate"):
        shown = " ".join(runs(command, "--help")[1].split())
        assert "MODEL is a GGUF file, a folder with exactly one, or a word that matches one here." in shown
        assert "unless this is `-`" in shown
    assert runs("chat", "-p", "given", stdin="not read\n")[1] == "You said: given\n"


def test_generate_takes_the_prompt_as_it_is(runs: Runs) -> None:
    seen = []
    runs.make = partial(FakeSession, lambda prompt: seen.append(prompt) or "!")  # type: ignore
    assert runs("generate", "-p", "-", stdin="  a\nb  \n\n")[:2] == (0, "!\n")
    assert runs("generate", "-p", "  c ")[:2] == (0, "!\n")
    assert seen == ["  a\nb  \n", "  c "]


def test_options_reach_the_session(runs: Runs) -> None:
    sampling = ["--temp", "0.5", "--top-k", "5", "--top-p", "0.9", "--min-p", "0.1", "--repeat-penalty", "1.2"]
    sampling += ["--seed", "3", "-n", "9", "--stop", "A", "--stop", "B"]
    runs("chat", "-p", "x", "--system", "S", "--ctx", "99", "--threads", "3", "--template", "T", *sampling)
    messages, options = runs.session.calls[0]
    assert messages[0] == {"role": "system", "content": "S"}
    assert (options.temperature, options.top_k, options.top_p, options.min_p) == (0.5, 5, 0.9, 0.1)
    assert (options.repeat_penalty, options.seed, options.max_tokens, options.stop) == (1.2, 3, 9, ("A", "B"))
    assert {**runs.loaded, "path": None} == {"path": None, "n_context": 99, "n_threads": 3, "template": "T"}


def test_limits_on_length_and_stop_strings(runs: Runs) -> None:
    assert runs("chat", "-p", "hello", "-n", "4")[1] == "You \n"
    assert runs("generate", "-p", "hello", "--stop", "id:")[1] == "You sa\n"


def test_default_limit_of_generate_is_not_silent(runs: Runs) -> None:
    runs.make = partial(FakeSession, lambda _: "x" * 300)  # type: ignore[assignment]
    status, out, err = runs("generate", "-p", "a")
    assert (status, out) == (0, "x" * 256 + "\n")
    assert "(stopped after 256 tokens, the default: -n gives more)" in err
    assert "stopped" not in runs("generate", "-p", "a", "-n", "256")[2]
    assert "stopped" not in runs("generate", "-p", "a", "-n", "999")[2]
    assert runs("generate", "-p", "a", "-q")[2] == ""


def test_lines_are_turns(runs: Runs) -> None:
    status, out, err = runs("chat", stdin="one\n\n/system S\ntwo\n/exit\nthree\n")
    assert (status, out) == (0, "You said: one\nYou said: two\n")
    assert ">" not in out + err
    assert len(runs.session.calls[1][0]) == 4


def test_error_in_a_line_ends_with_status_1(runs: Runs) -> None:
    runs.make = partial(FakeSession, n_context=50)  # type: ignore[assignment]
    status, out, err = runs("chat", stdin=f"one\n{'x' * 99}\ntwo\n")
    assert (status, out) == (1, "You said: one\n")
    assert "the context holds 50" in err


def test_json(runs: Runs) -> None:
    assert json.loads(runs("chat", "-p", "x", "--json")[1])["answer"] == "You said: x"
    assert json.loads(runs("generate", "-p", "x", "--json")[1])["text"] == "You said: x"


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "-p", " \n"],
        ["chat", "--temp", "-1"],
        ["chat", "--top-p", "0"],
        ["chat", "--nosuch"],
        ["chat", "-p", "x", "-n", "0"],
        ["generate"],
        ["generate", "-p", "x", "--seed", "-1"],
        ["generate", "-p", "x", "--stop", ""],
    ],
)
def test_wrong_usage_is_status_2(runs: Runs, arguments: list[str]) -> None:
    status, out, err = runs(*arguments)
    assert (status, out) == (2, "")
    assert "Error" in err


def test_input_that_is_not_text(runs: Runs) -> None:
    status, _, err = runs("chat", "-p", "-", stdin=b"\xff\xfe")
    assert status == 2
    assert "not UTF-8" in err
    status, out, err = runs("chat", stdin=b"one\r\na\xffb\n")
    assert (status, out) == (2, "You said: one\n")
    assert "line 2 of standard input is not UTF-8" in err


def test_not_a_number_is_explained(runs: Runs) -> None:
    status, _, err = runs("chat", "-p", "x", "--temp", "nan")
    assert status == 1
    assert "temperature is nan" in err


def test_checkpoint_is_to_be_converted_first(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("chat", "generate"):
        assert cli.run([command, str(tiny_checkpoint), "-p", "x"]) == 1
        err = capsys.readouterr().err
        assert f"llmkit convert {tiny_checkpoint} --to gguf-q4" in err


def test_missing_and_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["chat", str(tmp_path / "none.gguf"), "-p", "x"]) == 1
    assert "none.gguf" in capsys.readouterr().err
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert cli.run(["chat", str(tmp_path / "bad.gguf"), "-p", "x"]) == 1
    err = capsys.readouterr().err
    assert "bad.gguf" in err
    assert "Traceback" not in err


def llmkit(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmkit", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=300)


def test_real_model_holds_a_conversation(smollm2_gguf: Path) -> None:
    settings = ["--temp", "0", "-n", "12", "--threads", "1", "--context", "512"]
    done = llmkit("chat", smollm2_gguf, *settings, stdin="Name a fruit.\nName another one.\n/stats\n")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) >= 2
    assert "still in the KV cache" in done.stderr
    assert "tokens/s" in done.stderr
    assert llmkit("chat", smollm2_gguf, *settings, stdin="Name a fruit.\nName another one.\n").stdout == done.stdout


def test_real_model_continues_a_text_into_a_pipe(smollm2_gguf: Path) -> None:
    settings = ["--temp", "0", "-n", "2", "--threads", "1", "--context", "256"]
    done = llmkit("generate", smollm2_gguf, "-p", "The capital of France is", "-q", *settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, " Paris.\n", "")


def test_reader_that_goes_away(smollm2_gguf: Path) -> None:
    command = [sys.executable, "-m", "llmkit", "generate", str(smollm2_gguf), "-p", "Once upon", "-n", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait(timeout=120) != 0
    assert "Traceback" not in err
    assert "Exception ignored" not in err
