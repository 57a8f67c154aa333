"""`llmkit quantize` as a user meets it: what it prints, how it exits, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.cli import run
from llmkit.formats import output
from llmkit.formats.gguf import open_gguf
from tests.tinygguf import TinyGGUF, importance_of, write_importance
from tests.tinymodels import TinyLlama


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model in it."""
    monkeypatch.chdir(tmp_path)
    TinyGGUF(n_layers=1).write(tmp_path / "tiny-BF16.gguf")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_default_output_name_and_the_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", "tiny-BF16.gguf", "--to", "q4"]) == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("tiny-Q4_K_M.gguf is ")
    assert "bits per weight" in first
    assert second.startswith("verified in ")
    assert "relative error 0.06" in second
    assert "writing tiny-Q4_K_M.gguf" in err
    with open_gguf(here / "tiny-Q4_K_M.gguf") as file:
        assert file.get("general.file_type") == 15


def test_a_word_leads_to_a_model_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", "tiny", "--to", "gguf-q8_0"]) == 0
    assert "note: 'tiny' is tiny-BF16.gguf here" in capsys.readouterr().err
    assert names(here) == ["tiny-BF16.gguf", "tiny-Q8_0.gguf"]


def test_quiet_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imatrix = write_importance(here / "imatrix.gguf", importance_of(TinyGGUF(n_layers=1).weights()))
    arguments = ["tiny-BF16.gguf", "--to", "q4_k_m", "--imatrix", imatrix.name, "--split-size", "300KB", "--json"]
    assert run(["-q", "quantize", *arguments, "-o", "x.gguf"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    assert [file["bytes"] for file in result["files"]] == [Path(f["path"]).stat().st_size for f in result["files"]]
    assert result["path"] == result["files"][0]["path"] == f"x-00001-of-{len(result['files']):05d}.gguf"
    assert result["bytes"] == sum(file["bytes"] for file in result["files"])
    by_name = {tensor["name"]: tensor for tensor in result["tensors"]}
    assert by_name["blk.0.attn_q.weight"] == {
        "name": "blk.0.attn_q.weight",
        "shape": [256, 256],
        "source": "BF16",
        "type": "Q4_K",
        "bytes": 256 * 144,
        "importance": True,
    }
    assert by_name["token_embd.weight"]["importance"] is False
    assert set(result["verification"]["tensors"]) == set(by_name)
    assert 0.05 < result["verification"]["relative_error"] < 0.1
    assert any("has no data for token_embd.weight" in note for note in result["notes"])


def test_a_dry_run_shows_every_tensor_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TinyGGUF(n_layers=1, n_embd=192, n_heads=3, n_kv_heads=3).write(here / "odd.gguf")
    model = TinyGGUF(n_layers=1, n_embd=192, n_heads=3, n_kv_heads=3)
    write_importance(here / "imatrix.gguf", importance_of(model.weights()))
    before = names(here)
    arguments = ["odd.gguf", "--to", "q4_k_m", "--imatrix", "imatrix.gguf", "--tensor-type", "attn_v=q6_k"]
    assert run(["quantize", *arguments, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert names(here) == before
    assert run(["-q", "quantize", *arguments]) == 0
    with open_gguf(here / "odd-Q4_K_M.gguf") as file:
        size = (here / "odd-Q4_K_M.gguf").stat().st_size
        assert f"odd-Q4_K_M.gguf would be {size / 1000:.1f} kB" in planned
        for tensor in file.tensors.values():
            (line,) = [line for line in planned.splitlines() if line.startswith(tensor.name + " ")]
            assert f" {tensor.dtype} " in line
            assert f"{tensor.nbytes:,}" in line
            assert f"{' x '.join(str(n) for n in tensor.shape)}  " in line
            weighted = tensor.name != "token_embd.weight" and tensor.dtype not in ("F32", "Q8_0")
            assert ("  yes" if weighted else "  no") in line
    (attn_v,) = [line for line in planned.splitlines() if line.startswith("blk.0.attn_v")]
    assert "(not Q6_K: rows of 192 weights are not a multiple of 256)" in attn_v


def test_a_dry_run_reads_no_weight_and_loads_no_kernel(here: Path) -> None:
    code = (
        "import os, sys\nfrom llmkit.cli import run\n"
        "def refuse(*_): raise AssertionError('a weight is read')\n"
        "os.preadv = refuse\n"
        "status = run(['-q', 'quantize', 'tiny-BF16.gguf', '--to', 'q4_k_m', '--dry-run'])\n"
        "sys.exit(status or 'numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_options_for_types(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def types(*options: str) -> dict[str, str]:
        assert run(["-q", "quantize", "tiny-BF16.gguf", "--to", "q4_k_m", "--dry-run", "--json", *options]) == 0
        return {tensor["name"]: tensor["type"] for tensor in json.loads(capsys.readouterr().out)["tensors"]}

    assert types()["output.weight"] == "Q6_K"
    assert types("--pure")["output.weight"] == "Q4_K"
    assert types("--output-type", "q8_0")["output.weight"] == "Q8_0"
    assert types("--token-embedding-type", "f16")["token_embd.weight"] == "F16"
    found = types("--tensor-type", r"attn_[qk]=q5_k", "--tensor-type", "attn=iq4_nl")
    assert (found["blk.0.attn_k.weight"], found["blk.0.attn_output.weight"]) == ("Q5_K", "IQ4_NL")


def test_verbose_shows_the_error_of_every_tensor(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "quantize", "tiny-BF16.gguf", "--to", "q8_0", "-v", "--verify"]) == 0
    out = capsys.readouterr().out
    for name in TinyGGUF(n_layers=1).weights():
        assert any(line.startswith(f"{name} ") and "relative error 0.00" in line for line in out.splitlines())
    assert run(["-q", "quantize", "tiny-BF16.gguf", "--to", "q8_0", "--no-verify", "--overwrite"]) == 0
    assert "verified" not in capsys.readouterr().out


def test_quantising_again_warns_and_needs_a_word(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "quantize", "tiny-BF16.gguf", "--to", "q8_0"]) == 0
    assert run(["quantize", "tiny-Q8_0.gguf", "--to", "q4_0"]) == 1
    err = capsys.readouterr().err
    assert "tiny-Q8_0.gguf: 9 tensors are quantised already (9 of Q8_0)" in err
    assert "--allow-requantize" in err
    assert run(["quantize", "tiny-Q8_0.gguf", "--to", "q4_0", "--allow-requantize"]) == 0
    assert "note: 9 tensors are quantised already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tiny-BF16.gguf"],
        ["tiny-BF16.gguf", "--to", "q7"],
        ["tiny-BF16.gguf", "--to", "iq2_xs"],
        ["tiny-BF16.gguf", "--to", "q4", "--tensor-type", "attn_v"],
        ["tiny-BF16.gguf", "--to", "q4", "--tensor-type", "attn_v=q7"],
        ["tiny-BF16.gguf", "--to", "q4", "--tensor-type", "(=q8_0"],
        ["tiny-BF16.gguf", "--to", "q4", "--output-type", "iq1_s"],
        ["tiny-BF16.gguf", "--to", "q4", "--split-size", "none"],
        ["tiny-BF16.gguf", "--to", "q4", "--imatrix", "nowhere.dat"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", *arguments]) == 2
    assert "Usage:" in capsys.readouterr().err


def imatrix(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Path], list[str]]:  # type: ignore[type-arg]
    def prepare(folder: Path) -> list[str]:
        write_importance(folder / "imatrix.gguf", change(importance_of(TinyGGUF(n_layers=1).weights())))
        return ["tiny-BF16.gguf", "--imatrix", "imatrix.gguf"]

    return prepare


def truncated(folder: Path) -> list[str]:
    os.truncate(folder / "tiny-BF16.gguf", 200_000)
    return ["tiny-BF16.gguf"]


def big_endian(folder: Path) -> list[str]:
    data = (folder / "tiny-BF16.gguf").read_bytes()
    (folder / "tiny-BF16.gguf").write_bytes(data[:4] + (3).to_bytes(4, "big") + data[8:])
    return ["tiny-BF16.gguf"]


def with_nan(folder: Path) -> list[str]:
    model = TinyGGUF(n_layers=1, type="F32")
    weights = model.weights()
    weights["blk.0.ffn_up.weight"][17, 3] = np.nan
    model.write(folder / "nan.gguf", weights)
    return ["nan.gguf"]


def odd_rows(folder: Path) -> list[str]:
    TinyGGUF(n_layers=1, n_embd=192, n_heads=3, n_kv_heads=3).write(folder / "odd.gguf")
    return ["odd.gguf", "--no-fallback"]


def missing_part(folder: Path) -> list[str]:
    parts = llmkit.quantize(folder / "tiny-BF16.gguf", "bf16", output=folder / "m.gguf", split_size="400KB").paths
    parts[1].unlink()
    return [parts[2].name]


def checkpoint(folder: Path) -> list[str]:
    TinyLlama().write(folder / "m")
    return ["m"]


def safetensors(folder: Path) -> list[str]:
    TinyLlama().write(folder / "m")
    return ["m/model.safetensors"]


# What is given -> words that the one message must hold.
BAD_INPUT: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "truncated": (truncated, ["tiny-BF16.gguf", "truncated"]),
    "big endian": (big_endian, ["tiny-BF16.gguf", "big-endian"]),
    "NaN": (with_nan, ["nan.gguf", "blk.0.ffn_up.weight", "[17, 3]", "--allow-nonfinite"]),
    "no fallback": (odd_rows, ["blk.0.attn_q.weight: rows of 192 weights are not a multiple of 256"]),
    "missing part": (missing_part, ["m-00002-of-", "missing"]),
    "no file": (lambda _: ["nowhere.gguf"], ["nowhere.gguf", "no such file"]),
    "a checkpoint": (checkpoint, ["m", "checkpoint", "llmkit convert"]),
    "a SafeTensors file": (safetensors, ["model.safetensors", "not a GGUF file"]),
    "imatrix of wrong length": (
        imatrix(lambda entries: entries | {"blk.0.ffn_down.weight": np.ones((1, 256), np.float32)}),
        ["imatrix.gguf", "blk.0.ffn_down.weight", "256 values", "512 columns", "another model"],
    ),
    "imatrix of another model": (
        imatrix(lambda entries: {f"other.{name}": values for name, values in entries.items()}),
        ["imatrix.gguf", "none of its 8 entries", "another model"],
    ),
    "no imatrix": (lambda _: ["tiny-BF16.gguf", "--imatrix", "tiny-BF16.gguf"], ["tiny-BF16.gguf"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_message_and_no_file(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, words = BAD_INPUT[case]
    arguments = prepare(here)
    before = names(here)
    assert run(["-q", "quantize", *arguments, "--to", "q4_k_m", "-o", "out.gguf"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llmkit: ")
    assert "internal error" not in err
    for word in words:
        assert word in err
    assert names(here) == before


@pytest.mark.parametrize("name", ["tiny-BF16.gguf", "link.gguf", "imatrix.gguf", "parts"])
def test_the_input_is_never_replaced(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "link.gguf").symlink_to(here / "tiny-BF16.gguf")
    write_importance(here / "imatrix.gguf", importance_of(TinyGGUF(n_layers=1).weights()))
    source, target, options = "tiny-BF16.gguf", name, ["--imatrix", "imatrix.gguf"]
    if name == "parts":
        options = ["--split-size", "400KB"]
        assert run(["-q", "quantize", source, "--to", "bf16", "-o", "m.gguf", *options]) == 0
        source, target = next(path.name for path in sorted(here.glob("m-0*"))), "m.gguf"
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert run(["-q", "quantize", source, "--to", "bf16", "-o", target, "--overwrite", *options]) == 1
    assert "is one of the files that are to be read" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_an_existing_part_needs_overwrite(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["-q", "quantize", "tiny-BF16.gguf", "--to", "q8_0", "-o", "m.gguf", "--split-size", "200KB"]
    assert run(command) == 0
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    for path in sorted(here.glob("m-0*"))[:2]:
        path.unlink()
    assert run(command) == 1
    assert "exists already; replace it with --overwrite" in capsys.readouterr().err
    assert run([*command, "--overwrite"]) == 0
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize("options", [[], ["--split-size", "200KB"]], ids=["one file", "parts"])
def test_a_full_disk_is_found_at_once(
    options: list[str], here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[int] = []

    def nearly_full(descriptor: int, offset: int, length: int) -> None:
        if sum(reserved) + length > 300_000:
            raise OSError(28, "No space left on device")
        reserved.append(length)

    monkeypatch.setattr(output.os, "posix_fallocate", nearly_full)
    monkeypatch.setattr(output.OutputFile, "write_at", lambda *_: pytest.fail("the work must not start"))
    assert run(["-q", "quantize", "tiny-BF16.gguf", "--to", "q8_0", *options]) == 1
    assert "no space left on the disk" in capsys.readouterr().err
    assert bool(reserved) == bool(options)
    assert names(here) == ["tiny-BF16.gguf"]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_killed_midway(sent: signal.Signals, status: int, here: Path) -> None:
    """Nothing appears under the final names, and nothing else stays either."""
    TinyGGUF(n_layers=30, n_ff=4096, type="F32").write(here / "big.gguf")
    command = [sys.executable, "-m", "llmkit", "quantize", "big.gguf", "--to", "q2_k", "-o", "out.gguf"]
    command += ["--threads", "1", "--split-size", "1MB"]
    before = names(here)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("writing out.gguf"):
        assert process.poll() is None
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert names(here) == before


def test_the_package_is_the_function() -> None:
    import llmkit.quantize.recipes

    assert callable(llmkit.quantize)
    assert llmkit.quantize.recipes.RECIPES
