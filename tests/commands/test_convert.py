"""`llmkit convert` as a user meets it: what it prints, how it exits, and what it leaves behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.cli import run
from llmkit.errors import OutputError
from llmkit.formats.gguf import open_gguf
from llmkit.formats.output import check_output
from tests.tinygguf import write_importance
from tests.tinymodels import TinyLlama, write_json

Break = Callable[[Path], object]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_default_output_name_and_the_result_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TinyLlama().write(here / "Tiny-Llama")
    assert run(["convert", "Tiny-Llama", "--to", "gguf-q4"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Tiny-Llama-Q4_K_M.gguf is ")
    assert "bits per weight" in out
    assert "writing Tiny-Llama-Q4_K_M.gguf" in err
    with open_gguf(here / "Tiny-Llama-Q4_K_M.gguf") as file:
        assert file.get("general.file_type") == 15


def test_quiet_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TinyLlama(n_embd=192, n_ff=256, n_heads=3, n_kv_heads=1).write(here / "m")
    assert run(["-q", "convert", "m", "--to", "gguf-q4", "--json", "-o", "x.gguf"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    assert result["path"] == "x.gguf"
    assert result["bytes"] == (here / "x.gguf").stat().st_size
    assert result["fallbacks"][0].keys() == {"wanted", "type", "reason", "tensors", "parameters"}
    assert sum(t["parameters"] for t in result["types"].values()) == result["parameters"]


def test_fallbacks_are_printed_with_reason_and_effect(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TinyLlama(n_embd=192, n_ff=256, n_heads=3, n_kv_heads=1).write(here / "m")
    assert run(["convert", "m", "--to", "gguf-q4"]) == 0
    err = capsys.readouterr().err
    assert "get Q5_0 instead of Q4_K, 5.50 instead of 4.50 bits per weight" in err
    assert "rows of 192 weights are not a multiple of 256" in err
    assert "without fallbacks it would have" in err


def test_a_dry_run_shows_the_plan_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TinyLlama().write(here / "m")
    assert run(["convert", "m", "--to", "gguf-q4", "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert [p.name for p in here.iterdir()] == ["m"]
    assert run(["-q", "convert", "m", "--to", "gguf-q4"]) == 0
    with open_gguf(here / "m-Q4_K_M.gguf") as file:
        for tensor in file.tensors.values():
            (line,) = [line for line in planned.splitlines() if line.startswith(tensor.name + " ")]
            assert f" {tensor.dtype} " in line
            assert f"{tensor.nbytes:,}" in line


def test_the_help_names_every_type() -> None:
    from llmkit.commands._conversion import TYPES
    from llmkit.quantize.recipes import RECIPES

    assert TYPES.split() == list(RECIPES)


def test_options_for_types_and_an_importance_matrix(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The names are those of GGUF, whatever they are in the checkpoint."""
    model = TinyLlama()
    folder = model.write(here / "m")
    write_importance(here / "imatrix.gguf", {"blk.0.ffn_down.weight": np.ones((1, 512), np.float32)})
    options = ["--imatrix", "imatrix.gguf", "--tensor-type", "attn_k=q8_0", "--output-type", "q5_k"]
    assert run(["convert", str(folder), "--to", "gguf-q4_k_m", *options, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    types = {tensor["name"]: tensor["type"] for tensor in result["tensors"]}
    assert (types["blk.1.attn_k.weight"], types["output.weight"]) == ("Q8_0", "Q5_K")
    assert [t["name"] for t in result["tensors"] if t["importance"]] == ["blk.0.ffn_down.weight"]
    assert "note: the importance matrix has no data for " in err
    with open_gguf(here / "m-Q4_K_M.gguf") as file:
        assert file.get("quantize.imatrix.file") == "imatrix.gguf"
        assert file.get("quantize.imatrix.entries_count") == 1


def test_a_model_converted_to_parts_runs_as_the_whole_one(here: Path) -> None:
    folder = TinyLlama(n_shards=2).write(here / "m")
    assert run(["-q", "convert", str(folder), "--to", "gguf-q8", "-o", "whole.gguf"]) == 0
    assert run(["-q", "convert", str(folder), "--to", "gguf-q8", "-o", "m.gguf", "--split-size", "300KB"]) == 0
    parts = sorted(here.glob("m-0*.gguf"))
    assert len(parts) > 3
    logits = []
    for path in (here / "whole.gguf", parts[0]):
        with llmkit.load(path, n_context=32) as session:
            logits.append(session.logits([1, 2, 3]))
    assert np.array_equal(*logits)


def test_an_existing_output_needs_overwrite(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TinyLlama().write(here / "m")
    (here / "m-F16.gguf").write_bytes(b"mine")
    assert run(["convert", "m", "--to", "gguf-f16"]) == 1
    assert "exists already; replace it with --overwrite" in capsys.readouterr().err
    assert (here / "m-F16.gguf").read_bytes() == b"mine"
    assert run(["convert", "m", "--to", "gguf-f16", "--overwrite"]) == 0
    assert (here / "m-F16.gguf").stat().st_size > 4


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["m"],
        ["m", "--to", "gguf-q7"],
        ["m", "--to", "onnx"],
        ["m", "--to", "gguf-q4", "--memory", "lots"],
        ["m", "--to", "gguf-q4", "--threads", "0"],
        ["m", "--to", "gguf-q4", "--no-such-option"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", *arguments]) == 2
    assert "Usage:" in capsys.readouterr().err


def rewrite_header(change: Callable[[dict[str, dict[str, object]]], object]) -> Break:
    """Change the JSON header of the checkpoint's only SafeTensors file."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return apply


def index_entry(file: str) -> Break:
    """Let the index name `file` for one tensor."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"]["model.norm.weight"] = file
        write_json(path, index)

    return apply


def truncate(name: str, n_bytes: int) -> Break:
    return lambda folder: os.truncate(folder / name, n_bytes)


def only_pytorch_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


WEIGHTS = "model.safetensors"
SHARD = "model-00002-of-00003.safetensors"
NORM = "model.norm.weight"

# What is done to a valid checkpoint (of one file, or of three shards) -> words that the one message must hold.
BAD_INPUT: dict[str, tuple[int, Break, list[str]]] = {
    "missing shard": (3, lambda f: (f / SHARD).unlink(), [SHARD, "missing"]),
    "index leads outside": (3, index_entry("../outside.safetensors"), ["index.json", "../outside.safetensors"]),
    "index with an absolute name": (3, index_entry("/etc/passwd"), ["index.json", "/etc/passwd"]),
    "index names a tensor the shard lacks": (3, index_entry("model-00001-of-00003.safetensors"), [NORM]),
    "truncated header": (1, truncate(WEIGHTS, 100), [WEIGHTS, "truncated"]),
    "truncated data": (1, truncate(WEIGHTS, 100_000), [WEIGHTS]),
    "empty file": (1, truncate(WEIGHTS, 0), [WEIGHTS]),
    "oversized header": (
        1,
        lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + b"{" * 100),
        [WEIGHTS, "header", "1,099,511,627,776"],
    ),
    "overlapping offsets": (
        1,
        rewrite_header(lambda h: h[NORM].update(data_offsets=[0, 512])),
        [WEIGHTS, "overlap"],
    ),
    "unknown dtype": (1, rewrite_header(lambda h: h[NORM].update(dtype="F12")), [NORM, "F12"]),
    "shape contradicts config": (
        1,
        rewrite_header(lambda h: h[NORM].update(shape=[2, 128])),
        [NORM, "[2, 128]", "[256]", "config.json"],
    ),
    "unknown architecture": (
        1,
        lambda f: write_json(f / "config.json", {"architectures": ["GPT5ForCausalLM"]}),
        ["GPT5ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"],
    ),
    "no tokenizer": (1, lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json", "tokenizer.model"]),
    "no config": (1, lambda f: (f / "config.json").unlink(), ["config.json"]),
    "broken config": (1, truncate("config.json", 20), ["config.json"]),
    "broken tokenizer": (1, truncate("tokenizer.json", 2000), ["tokenizer.json"]),
    "no pytorch checkpoint": (1, only_pytorch_files, ["pytorch_model.bin", "is no PyTorch checkpoint"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_message_and_no_file(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n_shards, damage, words = BAD_INPUT[case]
    damage(TinyLlama(n_shards=n_shards).write(here / "m"))
    assert run(["-q", "convert", "m", "--to", "gguf-q4", "-o", "out.gguf"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llmkit: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert [p.name for p in here.iterdir()] == ["m"]


def test_output_folder_without_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        child = os.fork()
        if child == 0:  # root may write anywhere, so look as somebody else
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                check_output(Path(folder) / "out.gguf", overwrite=False)
            except OutputError as error:
                status = 0 if "no permission to write in" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system in which nothing can be created")
def test_output_where_no_file_can_be_created(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TinyLlama().write(here / "m")
    assert run(["-q", "convert", "m", "--to", "gguf-q4", "-o", "/proc/out.gguf"]) == 1
    assert capsys.readouterr().err.startswith("llmkit: /proc/out.gguf")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "link.safetensors"])
def test_the_input_is_never_replaced(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = TinyLlama().write(here / "m")
    (here / "link.safetensors").symlink_to(folder / "model.safetensors")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    output = here / name if name.startswith("link") else folder / name
    assert run(["-q", "convert", "m", "--to", "gguf-q8", "-o", str(output), "--overwrite"]) == 1
    assert "is one of the files that are to be read" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_earlier_result_inside_the_checkpoint_is_replaced(here: Path) -> None:
    TinyLlama().write(here / "m")
    for _ in range(2):
        assert run(["-q", "convert", "m", "--to", "gguf-q8", "-o", "m", "--overwrite"]) == 0
    assert (here / "m" / "m-Q8_0.gguf").exists()


@pytest.mark.parametrize(("output", "words"), [("-", "standard output"), ("new/", "no such folder"), ("no/x", "no")])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_outputs_that_cannot_be(
    output: str, words: str, dry_run: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TinyLlama().write(here / "m")
    assert run(["-q", "convert", "m", "--to", "gguf-q8", "-o", output, *dry_run]) == 1
    assert words in capsys.readouterr().err
    assert [p.name for p in here.iterdir()] == ["m"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_nobody_reads_the_progress(here: Path) -> None:
    TinyLlama().write(here / "m")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "llmkit", "convert", "m", "--to", "gguf-q8", "-o", "out.gguf"]
        assert subprocess.run(command, stderr=full, stdout=subprocess.PIPE, check=False).returncode == 0
    with open_gguf(here / "out.gguf") as file:
        assert file.get("general.file_type") == 7


def test_a_limit_on_file_size_is_an_error_like_a_full_disk(here: Path) -> None:
    TinyLlama().write(here / "m")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "-q", "convert", "m", "--to", "gguf-q8", "-o", "out.gguf"],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("llmkit: out.gguf: ")
    assert [p.name for p in here.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_killed_midway(sent: signal.Signals, status: int, here: Path) -> None:
    """Nothing appears under the final name, and nothing else stays either."""
    TinyLlama(n_layers=40, n_ff=2048, dtype="F32").write(here / "m")
    command = [sys.executable, "-m", "llmkit", "convert", "m", "--to", "gguf-q4_k_m", "-o", "out.gguf"]
    process = subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("writing out.gguf"):
        assert process.poll() is None
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert [p.name for p in here.iterdir()] == ["m"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert sorted(p.name for p in here.iterdir()) == ["m", "out.gguf"]
