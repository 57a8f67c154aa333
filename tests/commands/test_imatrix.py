"""`llmkit imatrix` and `llmkit.compute_importance` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.cli import run
from llmkit.convert.importance import read_importance
from llmkit.errors import FormatError, LlmkitError, OutputError
from tests.runtimes import tiny_gguf, tiny_moe
from tests.tinymodels import TinyLlama

TEXT = "She sells sea shells on the sea shore; the shells she sells are sea shells, I'm sure.\n" * 3
QUIET = ["--threads", "1", "-c", "64"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a mixture of experts and a text."""
    monkeypatch.chdir(tmp_path)
    tiny_moe.write_moe(tmp_path / "moe.gguf")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def test_the_result_and_its_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["imatrix", "moe.gguf", "--text", "text.txt", *QUIET]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("imatrix.gguf has the importance of 8 tensors: 4 chunks of 64 tokens, perplexity ")
    assert "no data for token_embd.weight, output.weight: quantised without importance" in err
    assert "no token reached some experts of blk.0.ffn_down_exps.weight (1 of 4), blk.0.ffn_gate_exps" in err
    importance = read_importance(here / "imatrix.gguf")
    assert (importance.datasets, importance.n_chunks, importance.chunk_size) == (("text.txt",), 4, 64)
    assert importance.without_data["blk.0.ffn_up_exps.weight"] == (tiny_moe.NEVER,)


def test_json_and_all_options(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "out").mkdir()
    options = ["--chunks", "2", "--process-output", "--json", "-o", "out"]
    assert run(["-q", "imatrix", "moe.gguf", "--text", "text.txt", *QUIET, *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    assert result["path"] == "out/imatrix.gguf"
    assert (result["entries"], result["chunks"], result["tokens"]) == (9, 2, 128)
    assert result["missing"] == ["token_embd.weight"]
    assert result["partial"]["blk.0.ffn_up_exps.weight"] == {"without_data": 1, "experts": 4}
    assert result["perplexity"] > 1
    assert "output.weight" in read_importance(here / "out" / "imatrix.gguf").entries


def test_products_on_demand(here: Path) -> None:
    assert run(["-q", "imatrix", "moe.gguf", "--text", "text.txt", *QUIET, "--chunks", "2", "--products", "16"]) == 0
    importance = read_importance(here / "imatrix.gguf")
    attention = importance.products["blk.0.attn_output.weight"]()
    assert attention.shape[1:] == (16, 16)
    means = np.diagonal(attention, axis1=1, axis2=2).ravel()
    np.testing.assert_allclose(means, importance.entries["blk.0.attn_output.weight"][0], rtol=1e-4)


def test_progress_counts_the_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["imatrix", "moe.gguf", "--text", "text.txt", *QUIET, "--chunks", "2"]) == 0
    assert "Running the text through the model (127 B)" in capsys.readouterr().err


def test_an_existing_output_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "imatrix.gguf").write_text("mine")
    assert run(["imatrix", "moe.gguf", "--text", "text.txt", *QUIET]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (here / "imatrix.gguf").read_text() == "mine"
    assert run(["imatrix", "moe.gguf", "--text", "text.txt", *QUIET, "--overwrite"]) == 0
    assert (here / "imatrix.gguf").read_bytes().startswith(b"GGUF")


def test_the_inputs_are_never_overwritten(here: Path) -> None:
    for name in ("moe.gguf", "text.txt"):
        before = (here / name).read_bytes()
        with pytest.raises(OutputError, match="is read here; name another file"):
            llmkit.compute_importance("moe.gguf", "text.txt", output=name, chunk_size=64, overwrite=True)
        assert (here / name).read_bytes() == before


def test_a_checkpoint_is_converted_on_the_way(here: Path) -> None:
    """Its temporary file is gone afterwards, and the result equals that of a bf16 file."""
    TinyLlama().write(here / "tiny")
    llmkit.convert("tiny", "gguf-bf16", output="tiny.gguf")
    direct = llmkit.compute_importance("tiny", "text.txt", output="a.gguf", chunk_size=64, threads=1)
    llmkit.compute_importance("tiny.gguf", "text.txt", output="b.gguf", chunk_size=64, threads=1)
    assert (here / "a.gguf").read_bytes() == (here / "b.gguf").read_bytes()
    assert direct.missing == ("token_embd.weight", "output.weight")
    assert {path.name for path in here.iterdir()} == {"a.gguf", "b.gguf", "tiny", "tiny.gguf", "moe.gguf", "text.txt"}


def test_a_failure_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    (here / "text.txt").write_text("too short")
    assert run(["imatrix", "moe.gguf", "--text", "text.txt", *QUIET]) == 1
    assert "one chunk needs 64" in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


def test_texts_that_are_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "latin.txt").write_bytes("Grün".encode("latin-1") * 100)
    with pytest.raises(FormatError, match=r"latin\.txt: not UTF-8 text: byte 0xfc at 2; save it as UTF-8"):
        llmkit.compute_importance("moe.gguf", "latin.txt")
    with pytest.raises(FormatError, match=r"gone\.txt: cannot be read"):
        llmkit.compute_importance("moe.gguf", "gone.txt")
    assert run(["imatrix", "moe.gguf", "--text", "."]) == 1
    assert "not a regular file" in capsys.readouterr().err
    with (here / "huge.txt").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(FormatError, match="has 1,073,741,824 bytes"):
        llmkit.compute_importance("moe.gguf", "huge.txt")


def test_texts_are_read_byte_for_byte(here: Path) -> None:
    """A token is a byte here, so a changed line end would show."""
    (here / "text.txt").write_bytes(b"\r\n" * 40)
    result = llmkit.compute_importance("moe.gguf", "text.txt", chunk_size=16, threads=1)
    assert result.n_chunks == (80 + 2) // 16  # and BOS, and the space that comes first in this vocabulary


def test_numbers_that_make_no_sense(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LlmkitError, match="chunks is 0"):
        llmkit.compute_importance("moe.gguf", "text.txt", chunks=0)
    with pytest.raises(LlmkitError, match="threads is 0"):
        llmkit.compute_importance("moe.gguf", "text.txt", threads=0)
    assert run(["imatrix", "moe.gguf", "--text", "text.txt", "-c", "15"]) == 2
    assert run(["imatrix", "moe.gguf"]) == 2
    assert "--text" in capsys.readouterr().err


def test_its_file_is_no_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "imatrix", "moe.gguf", "--text", "text.txt", *QUIET]) == 0
    assert run(["inspect", "imatrix.gguf"]) == 0
    assert "an importance matrix, not a model" in "".join(capsys.readouterr())
    for command in (
        ["generate", "imatrix.gguf", "-p", "x"],
        ["imatrix", "imatrix.gguf", "--text", "text.txt", "-o", "b"],
    ):
        assert run(command) == 1
        assert "imatrix.gguf: an importance matrix, not a model" in capsys.readouterr().err
    assert run(["-q", "generate", ".", "-p", "x", "-n", "1"]) == 0  # the only model here


def test_split_models_are_judged_by_all_their_parts(here: Path) -> None:
    from llmkit.importance import _weight_matrices

    first = tiny_gguf.write_llama(here / "x-00001-of-00002.gguf")
    tiny_moe.write_moe(here / "x-00002-of-00002.gguf")
    names = _weight_matrices(first)
    assert "blk.1.ffn_up.weight" in names
    assert "blk.0.ffn_up_exps.weight" in names
    assert "blk.0.attn_norm.weight" not in names
