"""TensorFlow checkpoints: their names, their files, and what is damaged. TensorFlow itself ends on some of these."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from olderfiles import OLDER, expected, extracted, proto, table, varint

import llmkit
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.older import find_older, read_older
from llmkit.formats.older.tensorflow import slice_key
from llmkit.inspection import inspect_path

HEADER = proto(1, 1) + proto(3, proto(1, 1))
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def shape(*sizes: int) -> bytes:
    return proto(2, b"".join(proto(2, proto(1, size)) for size in sizes))


def entry(sizes: Sequence[int], n_bytes: int, *, type: int = 1, file: int = 0, offset: int = 0) -> bytes:
    return proto(1, type) + shape(*sizes) + proto(3, file) + proto(4, offset) + proto(5, n_bytes)


def sliced(*extents: Sequence[tuple[int, int]]) -> bytes:
    """What the entry of a partitioned variable says of its slices; a length of -1 is left out."""
    return b"".join(
        proto(7, b"".join(proto(1, proto(1, start) + (proto(2, n) if n >= 0 else b"")) for start, n in one))
        for one in extents
    )


def write(folder: Path, entries: dict[bytes, bytes], header: bytes = HEADER) -> Path:
    index = folder / "x.index"
    index.write_bytes(table([{b"": header, **dict(sorted(entries.items()))}]))
    (folder / "x.data-00000-of-00001").write_bytes(VALUES.tobytes())
    return index


def copied(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(OLDER / name, folder / name)


@pytest.mark.parametrize(
    ("file", "index"),
    [
        ("tf2", "tf2.index"), ("tf2.data-00000-of-00001", "tf2.index"), ("tf1.ckpt", "tf1.ckpt.index"),
        ("tf1.ckpt.data-00001-of-00002", "tf1.ckpt.index"),
    ],
)  # fmt: skip
def test_other_ways_to_name_a_checkpoint(file: str, index: str, tmp_path: Path) -> None:
    result = llmkit.convert(OLDER / file, "safetensors", output=tmp_path / "x.safetensors")
    wanted = {name: tensor for name, tensor in expected(index).items() if tensor[0] != "C128"}
    assert extracted(result.path) == wanted
    found = inspect_path(OLDER / file)
    assert found.kind == "tensorflow"
    assert {path.name for path, _ in found.files} == {index, *(p.name for p in OLDER.glob(f"{index[:-5]}data-*"))}


def test_texts_are_left_out_with_a_note() -> None:
    graph, text = "'_CHECKPOINTABLE_OBJECT_GRAPH' (texts)", "'text/.ATTRIBUTES/VARIABLE_VALUE' (texts)"
    notes = inspect_path(OLDER / "tf2.index").notes
    assert notes[0] == f"entries that are no tensors of numbers are left out: {graph}, {text}"


def test_several_blocks(tmp_path: Path) -> None:
    index = write(tmp_path, {})
    names = [f"layer_{number:03d}/kernel".encode() for number in range(300)]
    blocks = [dict.fromkeys(names[begin : begin + 50], entry([2, 3], 24)) for begin in range(0, 300, 50)]
    index.write_bytes(table([{b"": HEADER}, *blocks]))
    assert [tensor.name.encode() for tensor in read_older(index, "tensorflow").tensors] == names


@pytest.mark.parametrize(
    ("number", "stored"),
    [
        (0, "80"), (2, "82"), (63, "bf"), (64, "c040"), (150, "c096"), (8191, "dfff"), (8192, "e02000"), (-1, "7f"),
        (-64, "40"), (-65, "3fbf"), (1 << 40, "fd0000000000"), ((1 << 63) - 1, "ffc07fffffffffffffff"),
    ],
)  # fmt: skip
def test_keys_of_slices(number: int, stored: str) -> None:
    """Those of one and two bytes are in the golden files; all are as ordered_code.cc has them."""
    expected_key = b"\0a\0\1\x01\x01" + bytes.fromhex(stored) + b"\x83"
    assert slice_key("a", ((number, 3),)) == expected_key


def test_slices_of_a_whole_axis(tmp_path: Path) -> None:
    extents = [[(0, 1), (0, -1)], [(1, 1), (0, -1)]]
    entries = {slice_key("w", tuple(one)): entry([1, 3], 12, offset=12 * row) for row, one in enumerate(extents)}
    index = write(tmp_path, {b"w": entry([2, 3], 0) + sliced(*extents), **entries})
    assert read_older(index, "tensorflow").values["w"].read(0, 24).tobytes() == VALUES.tobytes()


HALVES = [[(0, 1), (0, 3)], [(1, 1), (0, 3)]]
PARTS = {slice_key("w", tuple(one)): entry([1, 3], 12, offset=12 * row) for row, one in enumerate(HALVES)}
WHOLE = entry([2, 3], 0)

BROKEN: dict[str, tuple[dict[bytes, bytes], str]] = {
    "a negative dimension": ({b"w": entry([-5, 3], 24)}, r"'w': has the shape \[-5, 3\], which cannot be"),
    "an overflow": ({b"w": entry([1 << 40, 1 << 40], 24)}, "overflows 64 bits"),
    "many dimensions": ({b"w": entry([1] * 300, 4)}, "which cannot be"),
    "fewer bytes": ({b"w": entry([2, 3], 20)}, r"F32 \[2, 3\] takes 24 bytes, but 20 are stored"),
    "more than the file has": ({b"w": entry([1 << 33], 1 << 35)}, "its bytes 0 to 34,359,738,368 are not all there"),
    "beyond the file": ({b"w": entry([2, 3], 24, offset=1)}, r"x\.data-00000-of-00001.*bytes 1 to 25 are not all"),
    "before the file": ({b"w": entry([2, 3], 24, offset=-8)}, "are not all there"),
    "another file": ({b"w": entry([2, 3], 24, file=1)}, "is in file number 1 of 1"),
    "no message": ({b"w": b"\xff"}, "has a damaged entry"),
    "a dimension of another kind": ({b"w": proto(2, proto(2, 7))}, "has a damaged entry"),
    "a name that is no text": ({b"\xff": entry([2, 3], 24)}, "a name is not valid UTF-8"),
    "slices that are missing": ({b"w": WHOLE + sliced(*HALVES)}, r"no entry for its slice \[\(0, 1\), \(0, 3\)\]"),
    "too few slices": ({b"w": WHOLE + sliced(HALVES[0]), **PARTS}, "has 6 elements, but its slices have 3"),
    "one slice twice": ({b"w": WHOLE + sliced(*HALVES, HALVES[0]), **PARTS}, "but its slices have 9"),
    "slices beyond it": ({b"w": entry([1, 3], 0) + sliced(*HALVES), **PARTS}, r"is not within \[1, 3\]"),
    "slices of other dimensions": ({b"w": entry([6], 0) + sliced(*HALVES), **PARTS}, "of other dimensions"),
    "a slice of another type": (
        {b"w": WHOLE + sliced(*HALVES), **{key: entry([1, 3], 12, type=3) for key in PARTS}}, "is stored as another"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_entries_that_cannot_be(name: str, tmp_path: Path) -> None:
    entries, message = BROKEN[name]
    index = write(tmp_path, entries)
    with pytest.raises(FormatError, match=message):
        read_older(index, "tensorflow")


def test_headers(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is a big-endian checkpoint"):
        read_older(write(tmp_path, {}, HEADER + proto(2, 1)), "tensorflow")
    for count in (0, -1, 1 << 40):
        with pytest.raises(FormatError, match=f"values are in {count:,} files"):
            read_older(write(tmp_path, {}, proto(1, count)), "tensorflow")


CHANGES: dict[str, tuple[Callable[[bytes], bytes], type[FormatError | UnsupportedError], str]] = {
    "truncated": (lambda data: data[:-1], FormatError, "is no table"),
    "too short": (lambda data: data[-20:], FormatError, "is no table"),
    "another byte": (lambda data: data[:9] + b"\x07" + data[10:], FormatError, "block at byte 0 does not have its"),
    "a handle beyond the file": (
        lambda data: data[:-48] + varint(0) * 2 + varint(1 << 40) * 2 + bytes(26) + data[-8:],
        FormatError,
        "ends beyond the file",
    ),
    "handles without end": (lambda data: data[:-48] + b"\xff" * 40 + data[-8:], FormatError, "a number without end"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_tables(name: str, tmp_path: Path) -> None:
    change, error, message = CHANGES[name]
    index = write(tmp_path, {b"w": entry([2, 3], 24)})
    index.write_bytes(change(index.read_bytes()))
    with pytest.raises(error, match=message):
        read_older(index, "tensorflow")


def test_keys_do_not_grow_without_bounds(tmp_path: Path) -> None:
    index = write(tmp_path, {})
    names = [b"k" * 2000 + struct.pack(">I", number) for number in range(2000)]
    index.write_bytes(table([{b"": HEADER, **dict.fromkeys(names, b"")}]))
    with pytest.raises(FormatError, match="keys out of order or bounds"):
        read_older(index, "tensorflow")


def test_keys_out_of_order(tmp_path: Path) -> None:
    index = write(tmp_path, {})
    index.write_bytes(table([{b"": HEADER, b"b": entry([2, 3], 24), b"a": entry([2, 3], 24)}]))
    with pytest.raises(FormatError, match="keys out of order or bounds"):
        read_older(index, "tensorflow")


def test_files_that_are_missing(tmp_path: Path) -> None:
    copied(tmp_path, "tf1.ckpt.index", "tf1.ckpt.data-00000-of-00002")
    with pytest.raises(FormatError, match=r"its values are missing: tf1\.ckpt\.data-00001-of-00002"):
        inspect_path(tmp_path / "tf1.ckpt.index")
    copied(tmp_path, "tf2.index")
    with pytest.raises(FormatError, match=r"its values are missing: tf2\.data-00000-of-00001"):
        inspect_path(tmp_path / "tf2")


def test_what_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "other.index").write_bytes(b"an index of something else")
    (tmp_path / "x.data-00000-of-00001").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    shutil.copy(OLDER / "tf2.index", tmp_path / "folder.index")
    for name in ("other.index", "other", "x.data-00000-of-00001", "x", "folder"):
        assert find_older(tmp_path / name) is None
    assert find_older(tmp_path / "folder.index") == (tmp_path / "folder.index", "tensorflow")
