"""Older formats: what their own libraries wrote comes out with the same names, types, shapes and bytes."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from olderfiles import FILES, OLDER, caffe_blob, expected, extracted, pickled, pickled_array, proto
from safetensors.torch import load_file

import llmkit
from llmkit.formats.older import find_older, read_older
from llmkit.inspection import inspect_path


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("is_tight", [False, True])
def test_all_tensors_come_out_as_they_are(file: str, is_tight: bool, tmp_path: Path) -> None:
    options = {"verify": True, "threads": 2}
    memory = {False: "1GiB", True: "24KiB" if file == "tf1.ckpt.index" else "3KiB"}[is_tight]
    result = llmkit.convert(OLDER / file, "safetensors", output=tmp_path / "x.safetensors", memory=memory, **options)
    wanted = expected(file)
    left_out = [name for name, (type, _, _) in wanted.items() if type == "C128"]
    assert extracted(result.path) == {name: tensor for name, tensor in wanted.items() if name not in left_out}
    told = [note for note in result.plan.notes if "SafeTensors has no type for C128" in note]
    assert [repr(name) in note for name, note in zip(left_out, told, strict=True)] == [True] * len(left_out)


@pytest.mark.parametrize("file", FILES)
def test_inspect_lists_all_tensors(file: str) -> None:
    found = inspect_path(OLDER / file)
    assert found.kind == FILES[file]
    assert {t.name: (t.dtype, t.shape, t.nbytes) for t in found.tensors} == {
        name: (type, shape, len(data)) for name, (type, shape, data) in expected(file).items()
    }
    assert all(t.offset <= t.path.stat().st_size for t in found.tensors)
    assert any("--to safetensors" in note for note in found.notes)
    listed = json.loads(json.dumps(found.to_dict(with_tensors=True)))
    assert listed["kind"] == FILES[file]
    assert len(listed["tensor_list"]) == listed["tensors"]


def test_the_golden_files_cover_all_types() -> None:
    types = {type for file in FILES for type, _, _ in expected(file).values()}
    assert types >= {
        "F64",
        "F32",
        "F16",
        "BF16",
        "F8_E4M3",
        "F8_E5M2",
        "I64",
        "I32",
        "I16",
        "I8",
        "U8",
        "BOOL",
        "C64",
        "U16",
        "U32",
        "U64",
    }
    shapes = {shape for file in FILES for _, shape, _ in expected(file).values()}
    assert {(), (0, 3)} <= shapes


def encoded() -> list[tuple[str, str]]:
    """The tensors whose bytes in the file are not their values."""
    files = {file: find_older(OLDER / file) for file in FILES}
    return [(file, name) for file, found in files.items() if found for name in read_older(*found).values]


@given(place=st.sampled_from(encoded()), first=st.integers(0, 100), count=st.integers(0, 100))
def test_any_part_of_what_is_stored_otherwise(place: tuple[str, str], first: int, count: int) -> None:
    file, name = place
    found = find_older(OLDER / file)
    assert found is not None
    data = expected(file)[name][2]
    first = min(first, len(data))
    part = data[first : first + count]
    assert read_older(*found).values[name].read(first, len(part)).tobytes() == part


def test_what_is_stored_otherwise() -> None:
    assert {file for file, _ in encoded()} == {"sparse.params", "state2.pdparams", "slices.pdparams", "tf1.ckpt.index"}


def test_parameters_without_their_program_are_numbered(tmp_path: Path) -> None:
    shutil.copy(OLDER / "program.pdiparams", tmp_path / "x.pdiparams")
    found = inspect_path(tmp_path / "x.pdiparams")
    assert [t.name for t in found.tensors] == [f"tensor.{number}" for number in range(22)]
    assert "x.json or x.pdmodel, which has their names, is not beside it" in found.notes[0]
    result = llmkit.convert(tmp_path / "x.pdiparams", "safetensors", output=tmp_path / "x.safetensors")
    named = [tensor for tensor in expected("program.pdiparams").values() if tensor[0] != "C128"]
    assert list(extracted(result.path).values()) == named


def test_parameters_of_the_first_version(tmp_path: Path) -> None:
    shutil.copy(OLDER / "legacy.pdiparams", tmp_path / "__params__")
    shutil.copy(OLDER / "legacy.pdmodel", tmp_path / "__model__")
    assert {t.name for t in inspect_path(tmp_path / "__params__").tensors} == set(expected("legacy.pdiparams"))


def test_notes_on_bfloat16_and_what_is_no_tensor() -> None:
    notes = inspect_path(OLDER / "nested.pdparams").notes
    assert notes[0] == "stored as uint16, which is how PaddlePaddle stores bfloat16, and taken as BF16: 1 tensors"
    assert notes[1] == "entries that are no tensors of numbers are left out: 'epoch'"


def test_sparse_arrays_become_dense_with_a_note() -> None:
    notes = inspect_path(OLDER / "sparse.params").notes
    assert "array 'rows' is row-sparse; as a dense tensor it takes 72 bytes" in notes
    assert "array 'cells' is CSR; as a dense tensor it takes 96 bytes" in notes


def test_layers_of_the_first_kind(tmp_path: Path, rng: np.random.Generator) -> None:
    """No library of today reads them; the numbers are those of caffe.proto."""
    values = rng.normal(size=(2, 3)).astype(np.float32)
    layer = proto(1, b"ip1") + proto(2, b"innerproduct") + proto(50, caffe_blob(values))
    (tmp_path / "x.caffemodel").write_bytes(proto(2, proto(1, layer)))
    result = llmkit.convert(tmp_path / "x.caffemodel", "safetensors", output=tmp_path / "x.safetensors")
    assert extracted(result.path) == {"ip1/0": ("F32", (2, 3), values.tobytes())}


def test_values_in_several_pieces(tmp_path: Path, rng: np.random.Generator) -> None:
    """Protobuf allows a list of numbers to come in several runs."""
    values = rng.normal(size=12).astype(np.float32)
    blob = proto(5, values[:5].tobytes()) + proto(7, proto(1, 12)) + proto(5, values[5:].tobytes())
    (tmp_path / "x.caffemodel").write_bytes(proto(100, proto(1, b"a") + proto(7, blob)))
    result = llmkit.convert(tmp_path / "x.caffemodel", "safetensors", output=tmp_path / "x.safetensors")
    assert extracted(result.path) == {"a/0": ("F32", (12,), values.tobytes())}


@pytest.mark.parametrize("as_text", [False, True])
def test_memory_is_bounded_whatever_a_tensor_takes(as_text: bool, tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(0, 1 << 32, (4096, 1024), np.uint32)
    (tmp_path / "x.pdparams").write_bytes(pickled({"w": pickled_array(values, as_text=as_text)}))
    tracemalloc.start()
    options: dict[str, Any] = {"output": tmp_path / "x.safetensors", "memory": "4MiB", "threads": 1, "verify": False}
    result = llmkit.convert(tmp_path / "x.pdparams", "safetensors", **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert extracted(result.path)["w"][2] == values.tobytes()
    assert peak < 12 << 20


TORCH = {
    "plain": torch.arange(30.0).reshape(5, 6), "half": torch.ones(3, dtype=torch.float16), "scalar": torch.tensor(2),
    "flags": torch.tensor([True, False]), "bytes": torch.arange(5, dtype=torch.uint8), "empty": torch.zeros(0, 3),
    "turned": torch.arange(12, dtype=torch.int64).reshape(3, 4).t(), "c64": torch.ones(2, dtype=torch.complex64),
    "bf16": torch.ones(2, 2, dtype=torch.bfloat16), "i8": torch.arange(-3, 3, dtype=torch.int8),
    "nan": torch.tensor([float("nan"), float("inf")]),
}  # fmt: skip


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth", "x.ckpt", "x.pth.tar"])
def test_pytorch_files(name: str, tmp_path: Path) -> None:
    torch.save(TORCH, tmp_path / name)
    assert inspect_path(tmp_path / name).kind == "pytorch"
    result = llmkit.convert(tmp_path / name, "safetensors", output=tmp_path / "x.safetensors")
    found = load_file(result.path)
    assert found.keys() == TORCH.keys()
    for key, tensor in TORCH.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key].view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))


def test_tensors_that_share_their_bytes(tmp_path: Path) -> None:
    tied = torch.ones(4)
    torch.save({"a": tied, "b": tied, "c": torch.ones(4)}, tmp_path / "x.pt")
    result = llmkit.convert(tmp_path / "x.pt", "safetensors", output=tmp_path / "x.safetensors")
    assert result.plan.notes == ("2 tensors lie where others do; each has values of its own in the new file",)
    assert load_file(result.path).keys() == {"a", "b", "c"}
