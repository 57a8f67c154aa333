"""Output files appear under their final name only when complete; inputs and existing files stay."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llmkit.errors import OutputError
from llmkit.formats import output
from llmkit.formats.output import check_output, publish, publish_all


@pytest.fixture(params=["nameless", "named"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of keeping an unfinished file: without a name, and where the system has no such files."""
    if request.param == "named":
        monkeypatch.delattr(output.os, "O_TMPFILE", raising=False)
    return str(request.param)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_name_appears_at_the_end_and_nothing_else_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    with publish(path, 6, overwrite=False) as file:
        file.write_at(b"def", 3)
        file.write_at(memoryview(b"abc"), 0)
        assert not path.exists()
        assert len(names(tmp_path)) == (0 if kind == "nameless" else 1)
    assert path.read_bytes() == b"abcdef"
    assert names(tmp_path) == ["model.gguf"]
    assert path.stat().st_nlink == 1
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
    with publish(path, 3, overwrite=True) as file:
        file.write_at(b"new", 0)
    assert path.read_bytes() == b"new"


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with publish(path, 3, overwrite=True) as file:
        with publish(path, 3, overwrite=True) as other:
            other.write_at(b"xyz", 0)
        file.write_at(b"abc", 0)
        assert path.read_bytes() == b"xyz"
    assert path.read_bytes() == b"abc"
    assert names(tmp_path) == ["m.gguf"]


def test_several_files_take_their_names_together(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    with publish_all([(path, 3) for path in paths], overwrite=False) as files:
        for file, text in zip(files, (b"aaa", b"bbb", b"ccc"), strict=True):
            file.write_at(text, 0)
        assert not any(path.exists() for path in paths)
    assert [path.read_bytes() for path in paths] == [b"aaa", b"bbb", b"ccc"]
    assert sorted(names(tmp_path)) == ["a", "b", "c"]


def test_none_of_several_files_stays_if_one_cannot_have_its_name(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    with pytest.raises(OutputError, match="b: was created"), publish_all([(p, 3) for p in paths], overwrite=False):
        paths[1].write_bytes(b"theirs")
    assert names(tmp_path) == ["b"]
    with pytest.raises(OutputError, match="exists already"), publish_all([(p, 3) for p in paths], overwrite=False):
        pytest.fail("the work must not start")
    assert names(tmp_path) == ["b"]


def test_what_was_written_can_be_read_back(tmp_path: Path) -> None:
    with publish(tmp_path / "m.gguf", 6, overwrite=False) as file:
        file.write_at(b"abcdef", 0)
        buffer = bytearray(3)
        file.read_at(memoryview(buffer), 2)
        assert buffer == b"cde"
        with pytest.raises(OutputError, match="ended 1 bytes too early"):
            file.read_at(memoryview(buffer), 4)


def test_files_of_others_that_look_like_parts_stay(tmp_path: Path) -> None:
    (tmp_path / "m.gguf.part").write_bytes(b"a download of theirs")
    with publish(tmp_path / "m.gguf", 3, overwrite=False) as file:
        file.write_at(b"abc", 0)
    assert (tmp_path / "m.gguf.part").read_bytes() == b"a download of theirs"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, exists: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if exists:
        (elsewhere / "big.gguf").write_bytes(b"old")
    link = tmp_path / "m.gguf"
    link.symlink_to(elsewhere / "big.gguf")
    if exists:
        with pytest.raises(OutputError, match="exists already"):
            check_output(link, overwrite=False)
    with publish(link, 3, overwrite=exists) as file:
        file.write_at(b"new", 0)
    assert link.is_symlink()
    assert (elsewhere / "big.gguf").read_bytes() == b"new"
    assert sorted(names(tmp_path)) == ["elsewhere", "m.gguf"]


def test_errors_of_the_work_are_not_taken_for_errors_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="somewhere else"), publish(tmp_path / "m.gguf", 3, overwrite=False):
        raise OSError(errno.ENOSPC, "somewhere else")
    assert names(tmp_path) == []


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
        (lambda p: p.write_bytes(b""), "exists already; replace it with --overwrite"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: p.parent.rmdir(), "does not exist"),
        (lambda p: p.symlink_to("gone/away.gguf"), "the folder .*gone does not exist"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, prepare: object, words: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder / "m.gguf")  # type: ignore[operator]
    with pytest.raises(OutputError, match=words):
        check_output(folder / "m.gguf", overwrite=False)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"), publish(tmp_path / ("m" * 300), 3, overwrite=False):
        pytest.fail("the work must not start")
    with publish(tmp_path / ("m" * 250), 3, overwrite=False) as file:
        file.write_at(b"abc", 0)
    assert names(tmp_path) == ["m" * 250]
