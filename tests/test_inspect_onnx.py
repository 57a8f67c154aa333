"""`llmkit inspect` and the commands that run models, on ONNX folders."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import llmkit
from llmkit.cli import run
from llmkit.formats.onnxmodel import read_onnx
from llmkit.inspection import inspect_path
from llmkit.models import resolve
from tests.tinymodels import TinyLlama


def test_an_onnx_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = TinyLlama(tied=True).write(tmp_path / "m")
    folder = llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "o", tensor_types=["attn_output=int8"]).path
    found = inspect_path(folder)
    assert (found.kind, found.architecture, found.gguf) == ("onnx", "llama", None)
    assert found.hyperparameters.n_layers == 2
    assert found.hyperparameters.n_vocab == 320
    shapes = {t.name: (t.dtype, t.shape) for t in found.tensors}
    assert shapes["token_embd.weight"] == ("INT4/32", (320, 256))
    assert shapes["blk.1.attn_qkv.weight"] == ("INT4/32", (512, 256))
    assert shapes["blk.1.attn_output.weight"] == ("INT8/32", (256, 256))
    assert shapes["blk.0.attn_norm.weight"] == ("FLOAT", (256,))
    n_weights = sum(int(np.prod(shape)) for shape in TinyLlama(tied=True).shapes().values())
    assert found.n_params == n_weights + 2 * 512 * 32  # and the rotary tables
    assert read_onnx(folder / "model.onnx").n_weights == found.n_params
    assert sum(t.nbytes for t in found.tensors) <= (folder / "model.onnx.data").stat().st_size
    assert run(["inspect", str(folder)]) == 0
    assert "folder for ONNX Runtime GenAI" in capfd.readouterr().out
    assert resolve(str(folder), want="runnable").kind == "onnx"


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_devices_on_the_command_line(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    checkpoint = TinyLlama().write(tmp_path / "m")
    folder = llmkit.convert(checkpoint, "onnx-fp32", output=tmp_path / "o").path
    gguf = llmkit.convert(checkpoint, "gguf-f32", output=tmp_path / "m.gguf").path
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    arguments = ["-p", "for x in", "-n", "4", "--temp", "0"]
    arguments += ["--template", str(template)] if command == "chat" else []
    for model, device, status, message in (
        (folder, "auto", 0, "note: runs on cpu"),
        (folder, "cuda", 1, "no CUDA"),
        (gguf, "cpu", 2, "--device is for ONNX models"),
    ):
        assert run([command, str(model), "--device", device, *arguments]) == status
        assert message in capfd.readouterr().err
