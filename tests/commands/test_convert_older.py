"""`llmkit convert` and `inspect` on files of older formats, as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llmkit.cli import run
from llmkit.formats.safetensors import read_header

OLDER = Path(__file__).resolve().parent.parent / "golden" / "older"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files of older formats."""
    monkeypatch.chdir(tmp_path)
    for name in ("program.pdiparams", "program.json", "state4.pdparams", "sparse.params", "layers.caffemodel"):
        shutil.copy(OLDER / name, tmp_path / name)
    return tmp_path


def test_the_default_name_and_the_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "program.pdiparams", "--to", "safetensors"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("program.safetensors is ")
    assert "writing program.safetensors" in err
    assert "verif" not in out + err
    assert "note: tensor 'eager_tmp_11' is left out: SafeTensors has no type for C128" in err
    assert read_header(here / "program.safetensors").tensors["linear_0.w_0"].shape == (4, 3)


def test_a_folder_for_the_output(here: Path) -> None:
    (here / "out").mkdir()
    assert run(["-q", "convert", "layers.caffemodel", "--to", "safetensors", "-o", "out"]) == 0
    assert [path.name for path in (here / "out").iterdir()] == ["layers.safetensors"]


def test_json_names_the_types_of_safetensors(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "convert", "program.pdiparams", "--to", "safetensors", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["path"], result["target"]) == ("program.safetensors", "safetensors")
    assert {"F32", "BF16", "BOOL", "U8", "I8", "F8_E4M3", "C64"} <= result["types"].keys()
    types = {tensor["name"]: (tensor["source"], tensor["type"]) for tensor in result["tensors"]}
    assert types["eager_tmp_9"] == ("BOOL", "BOOL")


def test_a_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    assert run(["convert", "state4.pdparams", "--to", "safetensors", "--dry-run"]) == 0
    assert sorted(here.iterdir()) == before
    out = capsys.readouterr().out
    assert "fc.weight" in out
    assert "would be" in out


def test_an_existing_output_needs_overwrite(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "sparse.safetensors").write_bytes(b"mine")
    assert run(["convert", "sparse.params", "--to", "safetensors"]) == 1
    assert "exists already; replace it with --overwrite" in capsys.readouterr().err
    assert (here / "sparse.safetensors").read_bytes() == b"mine"
    assert run(["convert", "sparse.params", "--to", "safetensors", "--overwrite"]) == 0
    assert read_header(here / "sparse.safetensors").tensors["rows"].shape == (6, 3)


def test_the_source_is_never_replaced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "program.json").read_bytes()
    for output in ("program.pdiparams", "program.json"):
        assert run(["convert", "program.pdiparams", "--to", "safetensors", "-o", output, "--overwrite"]) == 1
        assert "is one of the files that are to be read" in capsys.readouterr().err
    assert (here / "program.json").read_bytes() == before


def test_damage_that_shows_late_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (here / "sparse.params").read_bytes()
    indices = np.array([1, 4], np.int64).tobytes()
    assert content.count(indices) == 1
    (here / "sparse.params").write_bytes(content.replace(indices, np.array([4, 1], np.int64).tobytes()))
    assert run(["convert", "sparse.params", "--to", "safetensors"]) == 1
    assert "has indices out of order or bounds" in capsys.readouterr().err
    assert not (here / "sparse.safetensors").exists()
    assert not [path for path in here.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("options", [["--to", "safetensors-f16"], ["--to", "safetensors", "--split-size", "1MB"]])
def test_options_that_do_not_fit(options: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "state4.pdparams", *options]) == 1
    assert "its tensors keep their types, in one file: give --to safetensors only" in capsys.readouterr().err


def test_other_targets_say_what_can_be_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "state4.pdparams", "--to", "gguf-q8"]) == 1
    assert "can be taken out: llmkit convert state4.pdparams --to safetensors" in capsys.readouterr().err
    assert run(["convert", "missing.pdparams", "--to", "safetensors"]) == 1
    assert "missing.pdparams: no such file or folder" in capsys.readouterr().err


def test_inspect(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "layers.caffemodel", "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "Caffe model (older format)" in out
    assert "conv/0  F32   4 x 3 x 3 x 3" in out
    assert "note: little software still reads this format; llmkit convert FILE --to safetensors" in out
    assert run(["inspect", "sparse.params", "--tensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "mxnet"
    assert {(t["name"], t["type"], t["bytes"]) for t in found["tensor_list"]} >= {("cells", "F64", 96)}


def test_the_help_says_that_these_are_older_formats(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("convert", "inspect"):
        assert run([command, "--help"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "older format" in out
        assert ".pdiparams" in out
        assert {"convert": "These are legacy formats", "inspect": "New models come as SafeTensors"}[command] in out
