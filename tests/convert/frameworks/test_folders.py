"""What is written of deployment formats, what is refused, and what commands make of the folders."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmkit
from llmkit.cli import run
from llmkit.convert.frameworks.build import map_weights
from llmkit.convert.frameworks.registry import FRAMEWORKS
from llmkit.errors import DependencyError, EngineError, FormatError, LlmkitError, OutputError, UnsupportedError
from llmkit.formats.exported import read_exported
from llmkit.inspection import inspect_path
from tests.convert.frameworks.reference import require, values
from tests.tinymodels import TinyLlama

TARGET = "onnx-standard"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyLlama(dtype="F32").write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def folder(tiny: Path) -> Path:
    return llmkit.convert(tiny, TARGET, output=tiny.parent / "onnx", context=128).path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_lies_in_the_folder(folder: Path, tiny: Path) -> None:
    assert {"llmkit.json", "model.onnx", "weights.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names(
        folder
    )
    found = json.loads((folder / "llmkit.json").read_text())
    assert (found["format"], found["precision"], found["architecture"]) == (TARGET, "fp32", "llama")
    assert found["source"] == {"name": "tiny", "kind": "checkpoint"}
    assert (found["context"], found["trained_context"]) == (128, 512)
    assert found["versions"]["llmkit"] == llmkit.__version__
    weights = map_weights(folder / "weights.safetensors")
    assert list(found["tensors"]) == list(weights)
    for name, tensor in found["tensors"].items():
        assert tensor["shape"] == list(weights[name].shape)
        assert tensor["sha256"] == sha256(weights[name].tobytes()).hexdigest()
    assert str(tiny) not in (folder / "llmkit.json").read_text()
    assert read_exported(folder).n_params == inspect_path(tiny).n_params


def test_onnx_has_standard_operators_only(folder: Path) -> None:
    import onnx

    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]


def test_quantised_tensors_are_one_each(tiny: Path, tmp_path: Path) -> None:
    made = llmkit.convert(tiny, "openvino-int4", output=tmp_path / "m", context=64).path
    found = inspect_path(made)
    assert found.n_params - inspect_path(tiny).n_params == 2 * 64 * 32  # the rotary tables
    (matrix,) = (tensor for tensor in found.tensors if tensor.name == "blk.0.ffn_up.weight")
    assert (matrix.dtype, matrix.shape, matrix.nbytes) == ("INT4/64Z", (512, 256), 512 * (128 + 8 + 2))
    assert '"offset": null' in json.dumps(found.to_dict(with_tensors=True))


def test_dry_run(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(tiny), "--to", "torch", "-o", str(tmp_path / "m"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "blk.0.attn_qkv.weight" in out
    assert "would be made from" in out
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_there(folder: Path, tiny: Path, tmp_path: Path) -> None:
    before = (folder / "llmkit.json").stat().st_ino
    with pytest.raises(OutputError, match="--overwrite"):
        llmkit.convert(tiny, TARGET, output=folder)
    assert (folder / "llmkit.json").stat().st_ino == before
    with pytest.raises(OutputError, match=r"no llmkit\.json"):
        llmkit.convert(tiny, TARGET, output=tiny, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is no folder"):
        llmkit.convert(tiny, TARGET, output=tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    made = llmkit.convert(tiny, TARGET, output=tmp_path / "empty").path
    (made / "old").write_text("of an earlier version")
    llmkit.convert(tiny, TARGET, output=made, overwrite=True, context=64)
    assert "old" not in names(made)
    assert read_exported(made).n_context == 64
    assert names(tmp_path) == {"file", "empty"}


@pytest.mark.parametrize("error", [RuntimeError("no such operator"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_nothing_is_left_of_a_failure(
    error: BaseException, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch.export, "save", fail)
    expected = LlmkitError if isinstance(error, Exception) else type(error)
    with pytest.raises(expected) as raised:
        llmkit.convert(tiny, "torch", output=tmp_path / "m")
    if isinstance(error, Exception):
        assert str(error.args[-1]) in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_an_input_in_the_output_folder(tmp_path: Path) -> None:
    made = llmkit.convert(TinyLlama().write(tmp_path / "a"), TARGET, output=tmp_path / "m").path
    inside = TinyLlama().write(made / "checkpoint")
    with pytest.raises(OutputError, match="holds a file that is to be read"):
        llmkit.convert(inside, TARGET, output=made, overwrite=True)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_missing_library(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkit.convert.frameworks import build

    monkeypatch.setattr(build, "is_installed", lambda packages: False)
    with pytest.raises(DependencyError, match=rf"pip install 'llmkit\[{FRAMEWORKS[name].extra}\]'"):
        llmkit.convert(tiny, name, output=tmp_path / "m")
    assert not list(tmp_path.iterdir())
    assert llmkit.convert(tiny, name, output=tmp_path / "m", dry_run=True).dry_run


def test_a_missing_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"pip install 'llmkit\[ort\]'"):
        llmkit.load(folder)


def test_options(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "m"
    for options in (
        {"pure": True},
        {"block_size": 32},
        {"split_size": "1GB"},
        {"tokenizer_pre": "x"},
    ):
        with pytest.raises(UnsupportedError, match="takes context, lora and, with 4 bits, imatrix"):
            llmkit.convert(tiny, "torch", output=output, **options)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="takes no context"):
        llmkit.convert(tiny, "gguf-q8_0", output=output, context=64)
    with pytest.raises(UnsupportedError, match="trained for 512"):
        llmkit.convert(tiny, "torch", output=output, context=513)
    with pytest.raises(UnsupportedError, match="openvino-int4"):
        llmkit.convert(tiny, "openvino-int3", output=output)
    with pytest.raises(EngineError, match="made for 128"):
        llmkit.load(llmkit.convert(tiny, TARGET, output=output, context=128).path, n_context=256)


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = str(folder), str(folder.parent / "tiny")
    assert run(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert "ONNX of standard operators, fp32, made by llmkit" in out
    assert run(["inspect", path, "--json", "--tensors"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["metadata"]["format"]) == ("exported", TARGET)
    assert found["tensor_list"][0]["offset"] > 0
    for command in ("inspect", "chat"):
        assert run([command, str(folder / "model.onnx")]) == 1
        assert "is a part of a model; give the folder" in capsys.readouterr().err
    assert run(["-q", "generate", path, "-p", "abc", "-n", "5", "--temp", "0"]) == 0
    assert capsys.readouterr().out
    text = tmp_path / "text"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    measured = ["--text", str(text), "-c", "64", "--chunks", "2", "--json"]
    assert run(["-q", "eval", path, "--reference", other, *measured]) == 0
    model = json.loads(capsys.readouterr().out)["models"][1]
    assert model["divergence"]["kl"]["value"] < 1e-6
    assert run(["-q", "bench", path, "-p", "8", "-n", "4", "-r", "1", "--json"]) == 0
    (speed,) = json.loads(capsys.readouterr().out)["models"]
    assert speed["engine"].startswith("ONNX Runtime 1.")
    assert speed["size"] > 1000
    shown = ["-p", "8", "-n", "4", "-r", "1", "--question", "Why?"]
    assert run(["-q", "compare", path, "--reference", other, *measured, *shown]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2


def test_damaged_folders(folder: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"version": 2}, "version 2; this llmkit knows 1"),
        ({"context": 0}, "context must be a positive number"),
        ({"context": 17}, "contradicts context 17"),
        ({"cache_shape": [1, 2]}, "five numbers"),
        ({"token_ids": []}, "token_ids must be an object"),
        ({"token_ids": {"eos": "x"}}, "eos must be a token id"),
        ({"format": ""}, "format must be a text"),
    ):
        (tmp_path / "llmkit.json").write_text(json.dumps(values(**changes)))
        with pytest.raises(FormatError, match=message):
            read_exported(tmp_path)
    for name in ("../x", "", 5, "..", "missing.pt2"):
        (tmp_path / "llmkit.json").write_text(json.dumps(values(model=name)))
        with pytest.raises(FormatError):
            read_exported(tmp_path).file()
    (tmp_path / "llmkit.json").write_text(json.dumps(values(format="other")))
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(UnsupportedError, match="does not run 'other'"):
        llmkit.load(tmp_path)


keys = st.sampled_from(sorted(values()))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(keys, anything, min_size=1, max_size=3))
def test_any_manifest(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "llmkit.json").write_text(json.dumps(values(**changes)))
    with suppress(LlmkitError):
        inspect_path(folder).to_dict(with_tensors=True)


@pytest.mark.parametrize("target", ["torch", "torchscript", "openvino", "stablehlo", "litert", "executorch", TARGET])
def test_damaged_models(target: str, tiny: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    """Whatever a library makes of it, the error is llmkit's."""
    require(target)
    folder = llmkit.convert(tiny, target, output=tmp_path / "m", context=64).path
    found = read_exported(folder)
    path = found.file("prefill" if "prefill" in found.values else "model")
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(LlmkitError, match="m"):
            llmkit.load(folder)
