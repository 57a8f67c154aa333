"""The command group: where common options may stand, and how every kind of ending shows in the exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmkit
from llmkit.cli import COMMANDS, run
from llmkit.errors import ModelNotFoundError
from tests.tinymodels import TinyLlama


@pytest.mark.parametrize("arguments", [["-q", "convert"], ["convert", "-q"], ["convert", "--quiet"]])
def test_quiet_works_before_and_after_the_command(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TinyLlama().write(tmp_path / "m")
    output = ["--to", "gguf-q8", "-o", str(tmp_path / "out.gguf")]
    assert run([*arguments, str(tmp_path / "m"), *output]) == 0
    assert capsys.readouterr().err == ""


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in COMMANDS:
        assert command in overview
        assert run([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: llmkit {command} ")
        assert text.count("--quiet") == 1


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no-such-command"]) == 2
    assert run(["--no-such-option"]) == 2
    assert "Usage: llmkit" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", "./no/such/folder", "--to", "gguf-q4"]
    assert run(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llmkit: ./no/such/folder")
    for debug in (["--debug", *arguments], [*arguments, "--debug"]):
        with pytest.raises(ModelNotFoundError):
            run(debug)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    TinyLlama(n_layers=200).write(tmp_path / "m")  # a table that no pipe holds, or it may end before its reader
    command = f"{sys.executable} -m llmkit -q convert {tmp_path / 'm'} --to gguf-q4 --dry-run | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("tensor ")
    assert done.stderr == ""
    assert done.returncode == 1


def test_nor_is_one_that_was_never_there(tmp_path: Path) -> None:
    """A table so short that Python writes it when it ends."""
    TinyLlama(n_layers=1).write(tmp_path / "m")
    command = [sys.executable, "-m", "llmkit", "-q", "convert", str(tmp_path / "m"), "--to", "gguf-q4", "--dry-run"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_an_error_of_our_own_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmkit.commands import convert

    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("somewhere")

    monkeypatch.setattr(convert, "resolve", fail)
    assert run(["convert", "m", "--to", "gguf-q4"]) == 1
    assert capsys.readouterr().err == (
        "llmkit: internal error, please report it: ZeroDivisionError: somewhere (--debug shows where)\n"
    )
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "convert", "m", "--to", "gguf-q4"])


def test_an_option_that_is_a_value_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "./no/such.gguf", "-p", "--debug"]) == 1
    assert capsys.readouterr().err.startswith("llmkit: ./no/such.gguf")


def test_the_python_api_names_what_it_offers() -> None:
    assert set(llmkit.__all__) <= set(dir(llmkit))
    for name in llmkit.__all__:
        assert getattr(llmkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llmkit.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_convert_can_be_called_however_it_was_imported(tmp_path: Path) -> None:
    import llmkit.convert.plan

    result = llmkit.convert(TinyLlama().write(tmp_path / "m"), "gguf-q8", output=tmp_path, dry_run=True)
    assert isinstance(result.plan, llmkit.convert.plan.ConversionPlan)
    assert result.path == tmp_path / "m-Q8_0.gguf"
