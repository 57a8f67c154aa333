"""PyTorch checkpoints: where their tensors lie, what is refused, and that no code of theirs runs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import llmkit
from llmkit.convert.checkpoint import open_checkpoint
from llmkit.errors import DependencyError, FormatError, LlmkitError, UnsupportedError
from llmkit.formats.pytorch import read_tensors
from llmkit.types import TensorInfo
from tests.tinymodels import TinyLlama

DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool",
          "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"]  # fmt: skip


def values(info: TensorInfo) -> list[int]:
    """The bytes of each element, as numbers, in the tensor's order."""
    width = info.nbytes // max(1, info.n_elements)
    strides = info.strides or torch.empty(info.shape, device="meta").stride()
    reach = 1 + sum((n - 1) * step for n, step in zip(info.shape, strides, strict=True))
    data = info.path.read_bytes()[info.offset : info.offset + reach * width]
    stored = np.frombuffer(data, f"V{width}")
    view = np.lib.stride_tricks.as_strided(stored, info.shape, [step * width for step in strides])
    return [int.from_bytes(item.tobytes(), "little") for item in view.ravel()]


def bits(tensor: torch.Tensor) -> list[int]:
    width = tensor.element_size()
    data = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str, tmp_path: Path) -> None:
    tensor = torch.arange(30).reshape(5, 6).to(getattr(torch, dtype))
    torch.save({"before": torch.zeros(3), "t": tensor}, tmp_path / "x.bin")
    found = read_tensors(tmp_path / "x.bin")["t"]
    assert (found.shape, found.strides) == ((5, 6), None)
    assert found.nbytes == tensor.nbytes
    assert values(found) == bits(tensor)


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda t: t.t(),
    "a part": lambda t: t[2:4],
    "every other column": lambda t: t[:, 1::2],
    "expanded": lambda t: t[:1].expand(4, 6),
    "swapped": lambda t: t.reshape(5, 2, 3).transpose(0, 1),
    "a scalar": lambda t: t[3, 4],
    "one row": lambda t: t[:1],
}


@pytest.mark.parametrize("name", VIEWS)
def test_tensors_that_are_views(name: str, tmp_path: Path) -> None:
    base = torch.arange(30, dtype=torch.float32).reshape(5, 6)
    torch.save({"base": base, "t": VIEWS[name](base)}, tmp_path / "x.bin")
    found = read_tensors(tmp_path / "x.bin")
    assert values(found["t"]) == bits(VIEWS[name](base))
    assert (found["t"].strides is None) == VIEWS[name](base).is_contiguous()


@pytest.mark.parametrize("wrap", [lambda s: s, OrderedDict, lambda s: {"state_dict": s, "step": 3},
                                  lambda s: {"model": s, "optimizer": {}}])  # fmt: skip
def test_where_state_dicts_stand(wrap: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    state = {"a": torch.nn.Parameter(torch.ones(2)), "empty": torch.zeros(0, 3)}
    torch.save(wrap(state), tmp_path / "x.pt")
    found = read_tensors(tmp_path / "x.pt")
    assert {name: info.shape for name, info in found.items()} == {"a": (2,), "empty": (0, 3)}


def test_module_state(tmp_path: Path) -> None:
    """OrderedDict with an attribute, tied weights, and a buffer."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    found = read_tensors(tmp_path / "x.pth")
    assert set(found) == set(model.state_dict())
    assert all(values(found[name]) == bits(tensor) for name, tensor in model.state_dict().items())


class Harmful:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.path)!r}, 'w')",))


def test_code_is_not_run_but_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Harmful(tmp_path / "harm")}, tmp_path / "x.bin")
    with pytest.raises(UnsupportedError, match=r"x\.bin: its pickle asks for builtins\.exec, code that loading"):
        read_tensors(tmp_path / "x.bin")
    assert not (tmp_path / "harm").exists()


def test_whole_modules_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(UnsupportedError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_tensors(tmp_path / "x.pt")


def test_the_format_before_1_6_and_the_advice_for_it(tmp_path: Path) -> None:
    path = tmp_path / 'it\'s "old".bin'
    state = {"a": torch.arange(6.0).reshape(2, 3)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match="before PyTorch") as caught:
        read_tensors(path)
    command = shlex.split(str(caught.value).splitlines()[-1])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert values(read_tensors(path)["a"]) == bits(state["a"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"x/{name}", "")


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A checkpoint whose members are changed."""
    torch.save({"a": torch.arange(600.0)}, path)
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, change(name.partition("/")[2], data))


def replaced(member: str, data: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: rewritten(path, lambda name, old: data(old) if name == member else old)


BROKEN: dict[str, tuple[Callable[[Path], object], type[LlmkitError], str]] = {
    "something else": (lambda path: path.write_bytes(b"hello"), FormatError, "is no PyTorch checkpoint"),
    "an LFS pointer": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), FormatError, "git lfs pull"),
    "a web page": (lambda path: path.write_bytes(b"<!DOCTYPE html>"), FormatError, "web page"),
    "empty": (lambda path: path.write_bytes(b""), FormatError, "is no PyTorch checkpoint"),
    "a cut-off archive": (
        lambda path: (torch.save({"a": torch.ones(99)}, path), path.write_bytes(path.read_bytes()[:-200])),
        FormatError, "no whole ZIP archive"),
    "TorchScript": (torchscript, UnsupportedError, "TorchScript"),
    "another ZIP archive": (other_archive, FormatError, "cannot be read as a PyTorch checkpoint"),
    "big-endian": (replaced("byteorder", lambda data: b"big"), UnsupportedError, "big-endian"),
    "compressed": (
        lambda path: rewritten(path, lambda name, data: data, zipfile.ZIP_DEFLATED), UnsupportedError, "compressed"),
    "a storage that is too short": (
        replaced("data/0", lambda data: data[:-4]), FormatError, "'a': does not lie within a part of the archive"),
    "a pickle that ends early": (replaced("data.pkl", lambda data: data[:-9]), FormatError, "cannot be read"),
    "no pickle": (replaced("data.pkl", lambda data: b""), FormatError, "cannot be read"),
    "no state dict": (lambda path: torch.save([torch.ones(2)], path), UnsupportedError, "holds a list"),
    "entries that are no tensors": (
        lambda path: torch.save({"a": torch.ones(2), "b": [1, 2]}, path), UnsupportedError, "entry 'b' is a list"),
    "sparse tensors": (
        lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), UnsupportedError, "sparse"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    make, error, message = BROKEN[name]
    make(tmp_path / "x.bin")
    with pytest.raises(error, match=message):
        read_tensors(tmp_path / "x.bin")


@given(position=st.integers(0, 2000), new=st.binary(min_size=1, max_size=8))
def test_damaged_bytes_end_in_one_error(position: int, new: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2).t()}, path)
    data = bytearray(path.read_bytes())
    position %= len(data)
    data[position : position + len(new)] = new
    path.write_bytes(data)
    try:
        found = read_tensors(path)
    except LlmkitError:
        return
    assert all(info.offset + info.nbytes <= len(data) for info in found.values())


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DependencyError, match=r"x\.bin.* needs the package 'torch': pip install 'llmkit\[pytorch\]'"):
        read_tensors(tmp_path / "x.bin")


def as_pytorch(folder: Path, change: Callable[[torch.Tensor], torch.Tensor], n_shards: int) -> None:
    """Store the weights of a SafeTensors checkpoint as PyTorch's instead."""
    from safetensors.torch import load_file

    tensors = {name: change(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    if n_shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(n_shards):
        file = f"pytorch_model-{number + 1:05d}-of-{n_shards:05d}.bin"
        names = list(tensors)[number::n_shards]
        torch.save({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("change", ["plain", "transposed"])
@pytest.mark.parametrize("target", ["gguf-bf16", "gguf-q8_0"])
def test_a_model_converts_to_the_bytes_that_its_safetensors_give(
    n_shards: int, change: str, target: str, tmp_path: Path
) -> None:
    folder = TinyLlama(bias=True).write(tmp_path / "m")
    options: dict[str, Any] = {"output": tmp_path / "x.gguf", "overwrite": True, "memory": "300KiB", "threads": 2}
    expected = llmkit.convert(folder, target, **options).path.read_bytes()

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        """The same values, stored column by column."""
        return tensor.t().contiguous().t() if change == "transposed" and tensor.dim() == 2 else tensor

    as_pytorch(folder, turned, n_shards)
    assert any(info.strides for info in open_checkpoint(folder).tensors.values()) == (change == "transposed")
    assert llmkit.convert(folder, target, **options).path.read_bytes() == expected


def test_an_index_of_other_files(tmp_path: Path) -> None:
    folder = TinyLlama(n_layers=1).write(tmp_path / "m")
    as_pytorch(folder, lambda tensor: tensor, 2)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(index.read_text().replace("pytorch_model-00001-of-00002.bin", "x.safetensors"))
    with pytest.raises(FormatError, match=r"names the shard 'x\.safetensors', which is not a \.bin file"):
        open_checkpoint(folder)
