"""`llmkit formats`: the table is what llmkit does, and every decision ends in a command that there is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from llmkit.arguments import parse_target
from llmkit.cli import COMMANDS, cli, run
from llmkit.convert.frameworks.registry import FRAMEWORKS
from llmkit.deciding import TREE, Decision, Question
from llmkit.deploymentformats import FORMATS, container_of, formats_by_target
from llmkit.runtimes.exported import ENGINES
from tests.tinymodels import TinyLlama


def decisions(place: Question | Decision = TREE, answers: tuple[str, ...] = ()) -> Iterator[tuple[str, Decision]]:
    if isinstance(place, Decision):
        yield " ".join(answers), place
        return
    for word, (_, next_place) in place.answers.items():
        yield from decisions(next_place, (*answers, word))


def test_the_table_is_what_llmkit_writes_and_runs() -> None:
    by_target = formats_by_target()
    assert set(FRAMEWORKS) | {"gguf", "onnx", "safetensors"} == set(by_target)
    for name, framework in FRAMEWORKS.items():
        one = by_target[name]
        assert one.target is not None
        assert (one.writes, one.write_extra) == (framework.packages, framework.extra)
        assert (one.runs is not None) == (name in ENGINES)
    for one in FORMATS:
        if one.target is not None:
            parse_target(one.target)
            assert container_of(one.target) in by_target
        assert bool(one.write_extra) == bool(one.writes)


@pytest.mark.parametrize(("answers", "decision"), list(decisions()))
def test_decisions(answers: str, decision: Decision) -> None:
    result = CliRunner().invoke(
        cli, ["formats", "--decide"], input=answers.replace(" ", "\n") + "\n", obj={"quiet": True}
    )
    assert result.exit_code == 0, result.output
    assert f"\n{decision.command}\n" in result.output
    words = shlex.split(decision.command)
    if words[0] == "llmkit":
        assert words[1] in COMMANDS
        command = cli.get_command(click.Context(cli), words[1])
        assert command is not None
        if "--to" in words:
            parse_target(words[words.index("--to") + 1])


def test_wrong_answers_are_asked_again() -> None:
    result = CliRunner().invoke(cli, ["formats", "--decide"], input="fly\nshare\n", obj={"quiet": True})
    assert result.exit_code == 0
    assert "'fly' is not one of" in result.output


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("llmkit.deploymentformats._is_installed", lambda package: package != "openvino")
    assert run(["formats"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("OpenVINO  "))
    assert line.split()[:5] == ["OpenVINO", "openvino-int4", "-", "no", "no"]
    assert "here it needs pip install 'llmkit[openvino]'" in out


def test_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("llmkit.measuring._WINDOWS", 1)
    monkeypatch.setattr("llmkit.measuring._WINDOW", 64)
    monkeypatch.setattr("llmkit.measuring._GENERATED", 4)
    monkeypatch.setattr("llmkit.measuring._REPETITIONS", 1)
    monkeypatch.chdir(tmp_path)
    tiny = TinyLlama(dtype="F32").write(tmp_path / "tiny")
    only = ["--only", "gguf-q8_0", "--only", "onnx-standard", "--only", "openvino-fp16", "--threads", "1"]
    assert run(["-q", "formats", "--measure", str(tiny), *only, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]["model"] == "tiny"
    measured = {one["target"]: one["measured"] for one in found["formats"] if one["measured"]}
    assert set(measured) == {"gguf-q4_k_m", "onnx-standard", "openvino-int4"}
    assert measured["gguf-q4_k_m"]["target"] == "gguf-q8_0"  # the form that was measured
    assert all(one["tokens_per_second"] > 0 and one["bytes"] > 1000 for one in measured.values())
    assert measured["onnx-standard"]["mean_kl"] < 1e-6 < measured["gguf-q4_k_m"]["mean_kl"]
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "tiny"}

    assert run(["formats"]) == 0
    assert "tokens/s and KL: tiny on" in capsys.readouterr().out
    kept = tmp_path / "cache" / "formats.json"
    values = json.loads(kept.read_text())
    for changed in ({**values, "machine": "another"}, {**values, "figures": [1]}, {"figures": []}):
        kept.write_text(json.dumps(changed))
        assert run(["formats", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["measured"] is None
    assert run(["-q", "formats", "--measure", str(tiny), "--only", "gguf-q9"]) == 1
    assert run(["formats", "--only", "torch"]) == 2
