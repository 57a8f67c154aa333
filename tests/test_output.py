"""Output files appear under their final name only when complete; inputs and existing files stay."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llmkit.errors import OutputError
from llmkit.formats import output
from llmkit.formats.output import check_output, publish


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_name_appears_at_the_end_and_the_part_goes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with publish(path, 6, overwrite=False) as descriptor:
        os.pwrite(descriptor, b"abcdef", 0)
        assert not path.exists()
        assert path.with_name("model.gguf.part").stat().st_size == 6
    assert path.read_bytes() == b"abcdef"
    assert names(tmp_path) == ["model.gguf"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), publish(tmp_path / "m.gguf", 6, overwrite=False):
        raise failure
    assert names(tmp_path) == []


def test_a_failure_keeps_the_file_that_was_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), publish(path, 6, overwrite=True):
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with publish(path, 3, overwrite=True) as descriptor:
        os.pwrite(descriptor, b"new", 0)
    assert path.read_bytes() == b"new"


def test_the_part_of_a_killed_process_is_reused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf.part").write_bytes(b"x" * 100)
    with publish(tmp_path / "m.gguf", 3, overwrite=False) as descriptor:
        os.pwrite(descriptor, b"abc", 0)
    assert (tmp_path / "m.gguf").read_bytes() == b"abc"


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with publish(path, 3, overwrite=False) as descriptor:
        with pytest.raises(OutputError, match="another process is writing"), publish(path, 3, overwrite=False):
            pytest.fail("the second must not start")
        os.pwrite(descriptor, b"abc", 0)
    assert path.read_bytes() == b"abc"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(OutputError, match="meanwhile"), publish(path, 3, overwrite=False):
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["m.gguf"]


def test_a_full_disk_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "posix_fallocate", full)
    with (
        pytest.raises(OutputError, match=r"no space left on the disk: 1,000 bytes are needed, [\d,]+ are free"),
        publish(tmp_path / "m.gguf", 1000, overwrite=False),
    ):
        pytest.fail("the work must not start")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda p: p.write_bytes(b""), "exists already; use --overwrite"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: p.parent.rmdir(), "does not exist"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, prepare: object, words: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder / "m.gguf")  # type: ignore[operator]
    with pytest.raises(OutputError, match=words):
        check_output(folder / "m.gguf", overwrite=False)
