"""One malformed GGUF file per case; each message must name the file, the key or tensor, and the problem."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import ggml_reader
import pytest
from gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U8, U16, U32, U64, array, gguf, pair, tensor, text

from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.gguf import open_gguf

F32_TENSOR, F16_TENSOR, Q4_0_TENSOR, Q4_K_TENSOR = 0, 1, 2, 12
ONE = [tensor("a", [8], F32_TENSOR, 0)]
NAMED = [pair("general.name", STRING, text("x"))]


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


# name -> (content, whether ggml refuses it too, what the message must say)
CASES: dict[str, tuple[Callable[[], bytes], bool, list[str]]] = {
    "empty file": (lambda: b"", True, ["not a GGUF file: it is empty"]),
    "other magic": (lambda: gguf(magic=b"GGML"), True, ["not a GGUF file", "GGML"]),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", True, ["Git LFS pointer", "git lfs pull"]),
    "web page": (lambda: b"<!DOCTYPE html><title>404</title>", True, ["web page"]),
    "zip": (lambda: b"PK\x03\x04" + bytes(60), True, ["zip archive"]),
    "only a magic": (lambda: b"GGUF", True, ["version", "truncated"]),
    "no counts": (lambda: b"GGUF" + u32(3) + bytes(4), True, ["number of tensors", "truncated"]),
    "version 0": (lambda: gguf(version=0), True, ["version 0"]),
    "version 1": (lambda: gguf(version=1), True, ["version 1", "no longer"]),
    "version 4": (lambda: gguf(version=4), True, ["version 4"]),
    "big-endian": (lambda: b"GGUF" + struct.pack(">IQQ", 3, 0, 0), True, ["big-endian"]),
    "tensor count lies": (lambda: gguf(n_tensors=1 << 40), True, ["1,099,511,627,776 tensors"]),
    "tensor count negative": (lambda: gguf(n_tensors=(1 << 64) - 1), True, ["tensors", "more than the file can hold"]),
    "key count lies": (lambda: gguf(n_keys=1 << 40), True, ["1,099,511,627,776 metadata keys"]),
    "one key too many": (lambda: gguf(NAMED, n_keys=2, alignment=1), True, ["metadata key 1", "truncated"]),
    "empty key": (lambda: gguf([pair("", U32, u32(1))]), True, ["key 0 is empty"]),
    "duplicate key": (lambda: gguf(NAMED * 2), True, ["'general.name' occurs twice"]),
    "key not UTF-8": (lambda: gguf([pair(b"\xff\xfe", U32, u32(1))]), False, ["key 0", "not valid UTF-8"]),
    "key longer than the file": (
        lambda: gguf([u64(1 << 29) + bytes(40)], alignment=1), True, ["metadata key 0", "536,870,912 bytes"]),
    "key with NUL": (lambda: gguf([pair("general.name\0x", U32, u32(1))]), False, ["'general.name\\x00x'", "NUL"]),
    "key over 64 KiB": (lambda: gguf([pair("k" * 65536, U32, u32(1))]), False, ["metadata key 0", "65,536", "65,535"]),
    "key over the limit": (lambda: gguf([u64(1 << 31) + bytes(40)]), True, ["metadata key 0", "the limit is"]),
    "key length overflows": (lambda: gguf([u64((1 << 64) - 1) + bytes(40)]), True, ["metadata key 0", "the limit is"]),
    "unknown value type": (lambda: gguf([pair("k", 13, bytes(8))]), True, ["'k'", "type 13"]),
    "negative value type": (lambda: gguf([pair("k", 0xFFFFFFFF, bytes(8))]), True, ["'k'", "type 4294967295"]),
    "unknown element type": (lambda: gguf([pair("k", ARRAY, array(77, 1, bytes(8)))]), True, ["'k'", "type 77"]),
    "nested array": (
        lambda: gguf([pair("k", ARRAY, array(ARRAY, 1, array(U8, 1, b"1")))]), True, ["'k'", "array of arrays"]),
    "array longer than the file": (
        lambda: gguf([pair("k", ARRAY, array(U64, 1 << 29, bytes(64)))]), True, ["'k'", "4,294,967,296 bytes"]),
    "array over the limit": (
        lambda: gguf([pair("k", ARRAY, array(U8, (1 << 30) + 1, bytes(64)))]), True, ["'k'", "the limit is"]),
    "array size overflows": (
        lambda: gguf([pair("k", ARRAY, array(U64, 1 << 61, bytes(64)))]), True, ["'k'", "the limit is"]),
    "more strings than bytes": (
        lambda: gguf([pair("k", ARRAY, array(STRING, 1 << 20, bytes(64)))]), True, ["'k'", "1,048,576 strings"]),
    "string outside": (
        lambda: gguf([pair("k", STRING, u64(100) + b"abc")], alignment=1), True, ["'k'", "takes 100 bytes"]),
    "second string of an array outside": (
        lambda: gguf([pair("k", ARRAY, array(STRING, 2, text("a") + u64(99)))], alignment=1), True, ["'k'[1]", "99"]),
    "last string of an array ends one byte outside": (
        lambda: gguf([pair("k", ARRAY, array(STRING, 2, text("a") + u64(2) + b"b"))], alignment=1), True, ["'k'[1]"]),
    "string of an array over the limit": (
        lambda: gguf([pair("k", ARRAY, array(STRING, 2, u64(1 << 62) + bytes(99)))]), True, ["'k'[0]", "the limit is"]),
    "boolean 2": (lambda: gguf([pair("k", BOOL, b"\x02")]), False, ["'k'", "boolean is 2"]),
    "boolean 7 in an array": (lambda: gguf([pair("k", ARRAY, array(BOOL, 3, b"\1\0\7"))]), False, ["'k'", "is 7"]),
    "alignment of another type": (
        lambda: gguf([pair("general.alignment", I32, u32(32))]), True, ["general.alignment", "UINT32", "INT32"]),
    "alignment as an array": (
        lambda: gguf([pair("general.alignment", ARRAY, array(U32, 1, u32(32)))]), True,
        ["general.alignment", "UINT32"]),
    "alignment 0": (lambda: gguf([pair("general.alignment", U32, u32(0))]), True, ["power of two, found 0"]),
    "alignment 48": (lambda: gguf([pair("general.alignment", U32, u32(48))]), True, ["power of two, found 48"]),
    "split number out of range": (
        lambda: gguf([pair("split.count", U16, b"\2\0"), pair("split.no", U16, b"\2\0")]), False, ["split.no is 2"]),
    "split number missing": (lambda: gguf([pair("split.count", U16, b"\2\0")]), False, ["split.no is None"]),
    "split count a string": (lambda: gguf([pair("split.count", STRING, text("2"))]), False, ["split.count", "STRING"]),
    "tensor name of 64 bytes": (
        lambda: gguf((), [tensor("n" * 64, [8], F32_TENSOR, 0)], bytes(32)), True, ["n" * 64, "64 bytes"]),
    "tensor name empty": (lambda: gguf((), [tensor("", [8], F32_TENSOR, 0)], bytes(32)), False, ["empty name"]),
    "tensor name with NUL": (lambda: gguf((), [tensor("a\0b", [8], F32_TENSOR, 0)], bytes(32)), False, ["NUL"]),
    "tensor name not UTF-8": (
        lambda: gguf((), [tensor(b"\xff", [8], F32_TENSOR, 0)], bytes(32)), False, ["tensor 0", "not valid UTF-8"]),
    "duplicate tensor": (
        lambda: gguf((), [*ONE, tensor("a", [8], F32_TENSOR, 32)], bytes(64)), True, ["tensor 'a'", "twice"]),
    "five dimensions": (
        lambda: gguf((), [tensor("a", [1] * 5, F32_TENSOR, 0)], bytes(32)), True, ["tensor 'a'", "5 dimensions"]),
    "four billion dimensions": (
        lambda: gguf((), [tensor("a", [8], F32_TENSOR, 0, n_dims=0xFFFFFFFF)], bytes(32)), True,
        ["tensor 'a'", "4,294,967,295 dimensions"]),
    "negative dimension": (
        lambda: gguf((), [tensor("a", [(1 << 64) - 1], F32_TENSOR, 0)], bytes(32)), True,
        ["tensor 'a'", "out of range"]),
    "elements overflow": (
        lambda: gguf((), [tensor("a", [1 << 32, 1 << 32], F32_TENSOR, 0)], bytes(32)), True, ["tensor 'a'", "limit"]),
    "elements overflow behind a zero": (
        lambda: gguf((), [tensor("a", [0, 1 << 32, 1 << 32], F32_TENSOR, 0)], bytes(32)), False,
        ["tensor 'a'", "limit"]),
    "bytes overflow": (
        lambda: gguf((), [tensor("a", [1 << 62], F32_TENSOR, 0)], bytes(32)), True, ["tensor 'a'", "2^63 bytes"]),
    "removed type": (
        lambda: gguf((), [tensor("a", [32], 31, 0)], bytes(32)), True, ["tensor 'a'", "Q4_0_4_4", "removed"]),
    "unknown type": (lambda: gguf((), [tensor("a", [32], 99, 0)], bytes(32)), True, ["tensor 'a'", "type 99"]),
    "negative type": (
        lambda: gguf((), [tensor("a", [32], (1 << 32) - 1, 0)], bytes(32)), True, ["tensor 'a'", "unknown type"]),
    "row not divisible": (
        lambda: gguf((), [tensor("a", [576, 2], Q4_K_TENSOR, 0)], bytes(9999)), True,
        ["tensor 'a'", "row of 576", "Q4_K blocks of 256"]),
    "scalar of a block type": (
        lambda: gguf((), [tensor("a", [], Q4_0_TENSOR, 0)], bytes(99)), True, ["tensor 'a'", "row of 1", "Q4_0"]),
    "first offset not 0": (
        lambda: gguf((), [tensor("a", [8], F32_TENSOR, 32)], bytes(64)), True, ["tensor 'a'", "at 32, expected 0"]),
    "hole": (
        lambda: gguf((), [*ONE, tensor("b", [8], F32_TENSOR, 64)], bytes(96)), True, ["tensor 'b'", "expected 32"]),
    "overlap": (
        lambda: gguf((), [*ONE, tensor("b", [8], F32_TENSOR, 0)], bytes(96)), True, ["tensor 'b'", "expected 32"]),
    "offset not aligned": (
        lambda: gguf((), [tensor("a", [9], F32_TENSOR, 0), tensor("b", [8], F32_TENSOR, 36)], bytes(96)), True,
        ["tensor 'b'", "at 36, expected 64"]),
    "data truncated": (
        lambda: gguf(NAMED, [*ONE, tensor("b", [100], F16_TENSOR, 32)], bytes(132)), False,
        ["tensor 'b'", "100 are missing", "truncated"]),
    "no data at all": (lambda: gguf((), ONE, alignment=1), True, ["tensor 'a'", "truncated"]),
    "tensor table truncated": (lambda: gguf((), ONE, alignment=1)[:-1], True, ["truncated"]),
    "ends inside the tensor table": (
        lambda: gguf((), [tensor("a" * 40, [8], F32_TENSOR, 0)], alignment=1)[:-9], True, ["a" * 40, "truncated"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, ggml_refuses, expected = CASES[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content())
    with pytest.raises(LlmkitError) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert isinstance(caught.value, UnsupportedError if name == "removed type" else FormatError)
    for part in [str(path), *expected]:
        assert part in message
    assert "\n" not in message
    if ggml_refuses:
        assert ggml_reader.read(path) is None
    capfd.readouterr()  # what ggml says about it


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "unreadable name"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300 if kind == "unreadable name" else "x")
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(FormatError, match=r"cannot be read|not a regular file"):
        open_gguf(path)


def test_values_that_are_valid_though_odd(tmp_path: Path) -> None:
    """What ggml accepts and real files contain: zero dimensions, empty arrays and strings, no tensors, version 2."""
    pairs = [
        pair("empty.strings", ARRAY, array(STRING, 0, b"")),
        pair("empty.numbers", ARRAY, array(F32, 0, b"")),
        pair("empty.string", STRING, text("")),
        pair("bytes", ARRAY, array(STRING, 2, text(b"\xff\x00\xfe") + text("né"))),
    ]
    path = tmp_path / "model.gguf"
    tensors = [tensor("none", [0, 4], F32_TENSOR, 0), tensor("scalar", [], F32_TENSOR, 0)]
    path.write_bytes(gguf(pairs, tensors, struct.pack("<f", 2.5), version=2))
    with open_gguf(path) as file:
        assert file.version == 2
        assert [file.get(key) for key in file.metadata] == [[], [], "", ["\udcff\x00\udcfe", "né"]]
        assert file.get("bytes")[0].encode("utf-8", "surrogateescape") == b"\xff\x00\xfe"
        assert {name: info.shape for name, info in file.tensors.items()} == {"none": (4, 0), "scalar": ()}
        assert file.raw("none").size == 0
        assert file.raw("scalar").tobytes() == struct.pack("<f", 2.5)
    assert ggml_reader.read(path) is not None
    path.write_bytes(gguf())
    with open_gguf(path) as file:
        assert not file.tensors
        assert not file.metadata
