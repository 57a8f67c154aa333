"""Exported programs and TorchScript of strangers: what could run code is refused before torch sees it."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import Mutation, binary

import llmkit
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.torchprograms import check_program, check_script
from tests.tinymodels import TinyLlama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    tiny = TinyLlama(n_layers=1, n_embd=32, n_ff=32).write(folder / "tiny")
    made = {to: llmkit.convert(tiny, to, output=folder / to, context=16).path for to in ("torch", "torchscript")}
    return {"torch": made["torch"] / "model.pt2", "torchscript": made["torchscript"] / "model.pt"}


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **more: bytes) -> Path:
    """The archive with members changed, left out or added."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as written:
        for info in archive.infolist():
            content = change(info.filename.partition("/")[2], archive.read(info))
            if content is not None:
                written.writestr(info.filename, content)
        for name, content in more.items():
            written.writestr(f"model/{name.replace('__', '/')}", content)
    return target


def test_what_llmkit_writes_is_accepted(models: dict[str, Path]) -> None:
    check_program(models["torch"])
    check_script(models["torchscript"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("torch.ops.aten.silu.default", "torch.os.system", r"the operation 'torch\.os\.system'"),
        ("torch.ops.aten.silu.default", "_operator.call", "the operation"),
        ("torch.ops.aten.silu.default", "torch.ops.aten.from_file.default", "the operation"),
        ("Symbol('s", "__import__('os').system('s", "the size"),
        ('"guards_code": []', '"guards_code": ["__import__(\'os\')"]', "guards_code"),
    ],
)
def test_programs_that_would_run_code(
    old: str, new: str, message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        text = json.dumps(json.loads(content))
        assert old in text
        return text.replace(old, new).encode()

    with pytest.raises(UnsupportedError, match=message):
        check_program(rewritten(models["torch"], tmp_path / "m.pt2", change))


def test_pickles_in_programs(models: dict[str, Path], tmp_path: Path) -> None:
    def pickled(name: str, content: bytes) -> bytes:
        return content.replace(b'"use_pickle": false', b'"use_pickle": true')

    def sampled(name: str, content: bytes) -> bytes:
        return b"x" if name.endswith("sample_inputs/model.pt") else content

    def same(name: str, content: bytes) -> bytes:
        return content

    for path, message in (
        (rewritten(models["torch"], tmp_path / "1.pt2", pickled), "pickled weights"),
        (rewritten(models["torch"], tmp_path / "2.pt2", sampled), "pickled sample inputs"),
        (rewritten(models["torch"], tmp_path / "3.pt2", same, data__constants__custom_obj_0=b"x"), "a member"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            check_program(path)


def test_scripts_that_would_do_more(models: dict[str, Path], tmp_path: Path) -> None:
    class Loops(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_file("x", size=3) if x.sum() > 0 else x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Loops()), str(tmp_path / "m.pt"))
    with pytest.raises(UnsupportedError, match="a call of"):
        check_script(tmp_path / "m.pt")

    def set_state(name: str, content: bytes) -> bytes:
        return content + b"  def __setstate__(self, x): pass\n" if name.endswith(".py") else content

    with pytest.raises(UnsupportedError, match="__setstate__"):
        check_script(rewritten(models["torchscript"], tmp_path / "n.pt", set_state))


def test_not_what_it_should_be(models: dict[str, Path], tmp_path: Path) -> None:
    def nothing(name: str, content: bytes) -> None:
        return None

    empty = rewritten(models["torch"], tmp_path / "m", nothing)
    for check in (check_program, check_script):
        with pytest.raises(FormatError, match="has no"):
            check(empty)
        with pytest.raises(FormatError, match="no zip archive"):
            check(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["torch", "torchscript"])
@given(data=st.data())
def test_damaged(kind: str, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    content = models[kind].read_bytes()
    mutations: list[Mutation] = data.draw(st.lists(binary(len(content)), min_size=1, max_size=4))
    for mutation in mutations:
        content = mutation(content)
    path = tmp_path_factory.mktemp("m") / "m"
    path.write_bytes(content)
    with suppress(LlmkitError):
        (check_program if kind == "torch" else check_script)(path)
