"""TensorFlow checkpoints: through TensorFlow where it is installed, and what is said where it is not."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from olderfiles import OLDER, expected, extracted

import llmkit
from llmkit.errors import DependencyError, FormatError, LlmkitError, UnsupportedError
from llmkit.formats.older import find_older, read_older
from llmkit.inspection import inspect_path

with_tensorflow = pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs tensorflow")
PARTS = ("tf2.index", "tf2.data-00000-of-00001")


def copied(folder: Path, *names: str) -> Path:
    for name in names:
        shutil.copy(OLDER / name, folder / name)
    return folder


@with_tensorflow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("file", "index"),
    [
        ("tf2.index", "tf2.index"), ("tf2", "tf2.index"), ("tf2.data-00000-of-00001", "tf2.index"),
        ("tf1.ckpt", "tf1.ckpt.index"), ("tf1.ckpt.index", "tf1.ckpt.index"),
        ("tf1.ckpt.data-00001-of-00002", "tf1.ckpt.index"),
    ],
)  # fmt: skip
def test_all_tensors_come_out_as_they_are(file: str, index: str, tmp_path: Path) -> None:
    result = llmkit.convert(OLDER / file, "safetensors", output=tmp_path / "x.safetensors", memory="1MiB")
    wanted = {name: tensor for name, tensor in expected(index).items() if tensor[0] != "C128"}
    assert extracted(result.path) == wanted
    texts = [note for note in result.plan.notes if "no tensors of numbers" in note]
    assert [("_CHECKPOINTABLE_OBJECT_GRAPH (string)" in note) for note in texts] == [True] * (index == "tf2.index")
    found = inspect_path(OLDER / file)
    assert found.kind == "tensorflow"
    assert {tensor.name for tensor in found.tensors} == set(expected(index))
    assert found.n_bytes == sum(
        path.stat().st_size for path in OLDER.glob(f"{index.removesuffix('index')}*") if path.suffix != ".npz"
    )


@with_tensorflow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PARTS)
def test_damage_is_our_error(name: str, tmp_path: Path) -> None:
    copied(tmp_path, *PARTS)
    content = (OLDER / name).read_bytes()
    for position in range(0, len(content), 41):
        (tmp_path / name).write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            found = read_older(tmp_path / "tf2.index", "tensorflow")
            for tensor in found.tensors:
                found.values[tensor.name].read(0, tensor.nbytes)
        except LlmkitError as error:
            assert "tf2.index" in str(error)  # noqa: PT017


def test_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for action in (inspect_path, lambda path: llmkit.convert(path, "safetensors", output=tmp_path / "x.safetensors")):
        with pytest.raises(DependencyError, match=r"tf2\.index.* pip install 'llmkit\[tensorflow\]'"):
            action(OLDER / "tf2.index")
    assert not list(tmp_path.iterdir())


def test_files_that_are_missing(tmp_path: Path) -> None:
    copied(tmp_path, "tf1.ckpt.index", "tf1.ckpt.data-00000-of-00002")
    with pytest.raises(FormatError, match=r"its values are missing: tf1\.ckpt\.data-00001-of-00002"):
        inspect_path(tmp_path / "tf1.ckpt.index")
    copied(tmp_path, "tf2.index")
    with pytest.raises(FormatError, match=r"its values are missing: tf2\.data-00000-of-00001"):
        inspect_path(tmp_path / "tf2")


def test_files_of_two_checkpoints(tmp_path: Path) -> None:
    copied(tmp_path, *PARTS)
    for number in (0, 1):
        shutil.copy(tmp_path / PARTS[1], tmp_path / f"tf2.data-{number:05d}-of-00002")
    with pytest.raises(UnsupportedError, match="several checkpoints of that name"):
        inspect_path(tmp_path / "tf2.index")


def test_what_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "other.index").write_bytes(b"an index of something else")
    (tmp_path / "x.data-00000-of-00001").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    shutil.copy(OLDER / "tf2.index", tmp_path / "folder.index")
    for name in ("other.index", "other", "x.data-00000-of-00001", "x", "folder"):
        assert find_older(tmp_path / name) is None
    assert find_older(tmp_path / "folder.index") == (tmp_path / "folder.index", "tensorflow")
