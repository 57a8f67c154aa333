"""SafeTensors headers: equal to what the safetensors package reads, and one malformed file per case."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from llmkit.errors import FormatError
from llmkit.formats.safetensors import DTYPE_BITS, MAX_HEADER_BYTES, read_header


def build(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_equals_the_safetensors_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "model.embed_tokens.weight": rng.random((10, 4), dtype=np.float32),
        "half": rng.random((2, 3, 4)).astype(np.float16),
        "ids": np.arange(5, dtype=np.int64),
        "flags": np.array([[True], [False]]),
        "scalar": np.array(3, dtype=np.uint8),
        "empty": np.zeros((0, 7), dtype=np.float64),
        "größe 🦙": np.zeros(3, dtype=np.int16),
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt", "note": "ü"})
    header = read_header(path)
    assert header.path == path
    assert header.metadata == {"format": "pt", "note": "ü"}
    content = path.read_bytes()
    with safetensors.safe_open(path, "numpy") as theirs:
        assert set(header.tensors) == set(theirs.keys())
        for name, info in header.tensors.items():
            part = theirs.get_slice(name)
            assert (info.name, info.path) == (name, path)
            assert (info.dtype, list(info.shape)) == (part.get_dtype(), part.get_shape())
            assert content[info.offset : info.offset + info.nbytes] == tensors[name].tobytes()
    offsets = [info.offset for info in header.tensors.values()]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_dtypes_of_the_safetensors_package(dtype: str, tmp_path: Path) -> None:
    """The package accepts the same dtype with the same size, and no other size."""
    path = tmp_path / "model.safetensors"
    n_bytes = DTYPE_BITS[dtype]  # of 8 elements
    path.write_bytes(build({"a": entry(dtype, [8], [0, n_bytes])}, bytes(n_bytes)))
    assert read_header(path).tensors["a"].nbytes == n_bytes
    with safetensors.safe_open(path, "numpy") as theirs:
        assert list(theirs.keys()) == ["a"]
    path.write_bytes(build({"a": entry(dtype, [8], [0, n_bytes + 1])}, bytes(n_bytes + 1)))
    with pytest.raises(FormatError, match="'a'"):
        read_header(path)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(path, "numpy").__enter__()


def test_no_tensors_and_padded_headers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(build(b"{}      "))
    assert read_header(path).tensors == {}
    path.write_bytes(build(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"later":1}}   ', bytes(8)))
    assert read_header(path).tensors["a"].shape == (2,)


def test_only_the_header_is_read(tmp_path: Path) -> None:
    """A file of 1 TiB, all of it a hole: reading any of its data would be noticed."""
    path = tmp_path / "model.safetensors"
    n_bytes = 1 << 40
    path.write_bytes(build({"a": entry("U8", [n_bytes], [0, n_bytes])}))
    start = path.stat().st_size
    try:
        with path.open("r+b") as file:
            file.truncate(start + n_bytes)
    except OSError:
        pytest.skip("the file system has no sparse files of this size")
    assert read_header(path).tensors["a"].nbytes == n_bytes


TWO = {"a": entry(), "b": entry(offsets=[8, 16])}
DEEP = b'{"a":' + b"[" * 100_000

# name -> (content, whether the safetensors package refuses it too, what the message must say)
CASES: dict[str, tuple[Callable[[], bytes], bool, list[str]]] = {
    "empty file": (lambda: b"", True, ["0 bytes"]),
    "eight bytes": (lambda: bytes(8), True, ["8 bytes"]),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", True, ["git lfs pull"]),
    "GGUF": (lambda: b"GGUF" + bytes(60), True, ["GGUF"]),
    "zip": (lambda: b"PK\x03\x04" + bytes(60), True, ["zip archive"]),
    "header over the limit": (lambda: build({}, length=MAX_HEADER_BYTES + 1), True, ["100,000,001", "100,000,000"]),
    "header of 2^64 - 1": (lambda: build({}, length=(1 << 64) - 1), True, ["18,446,744,073,709,551,615"]),
    "header longer than the file": (lambda: build({}, length=1000), True, ["1,000 bytes", "truncated"]),
    "header of no bytes": (lambda: build({}, length=0), True, ["start with '{'"]),
    "not an object": (lambda: build([1, 2]), True, ["start with '{'"]),
    "space first": (lambda: build(b" {}"), False, ["start with '{'"]),
    "not UTF-8": (lambda: build(b'{"\xff":1}'), True, ["UTF-8"]),
    "not JSON": (lambda: build(b'{"a":}'), True, ["not valid JSON", "column"]),
    "cut JSON": (lambda: build(b'{"a":{"dtype":"F32"'), True, ["not valid JSON"]),
    "two values": (lambda: build(b"{}{}"), True, ["not valid JSON"]),
    "nested too deeply": (lambda: build(DEEP), True, ["nested too deeply"]),
    "NaN": (lambda: build(b'{"a":NaN}'), True, ["NaN"]),
    "integer of 9,000 digits": (
        lambda: build(b'{"a":{"dtype":"F32","shape":[' + b"9" * 9000 + b'],"data_offsets":[0,8]}}', bytes(8)), True,
        ["thousands of digits"]),
    "duplicate tensor": (
        lambda: build(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                      b'"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', bytes(16)), True, ["'a'", "twice"]),
    "duplicate field": (
        lambda: build(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)), True,
        ["'dtype'", "twice"]),
    "half a surrogate pair": (
        lambda: build(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)), True, ["surrogate"]),
    "metadata not an object": (lambda: build({"__metadata__": [1]}), True, ["__metadata__", "an array"]),
    "metadata value not a string": (lambda: build({"__metadata__": {"n": 1}}), True, ["__metadata__['n']", "integer"]),
    "tensor not an object": (lambda: build({"a": 7}), True, ["'a'", "an integer"]),
    "dtype missing": (lambda: build({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), True, ["'a'", "dtype"]),
    "offsets missing": (lambda: build({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), True, ["'a'", "data_offsets"]),
    "unknown dtype": (lambda: build({"a": entry("F7")}, bytes(8)), True, ["'a'", "unknown dtype 'F7'", "BF16"]),
    "dtype not a string": (lambda: build({"a": entry(7)}, bytes(8)), True, ["'a'", "unknown dtype 7"]),  # type: ignore[arg-type]
    "dtype a list": (lambda: build({"a": entry(["F32"])}, bytes(8)), True, ["'a'", "unknown dtype"]),  # type: ignore[arg-type]
    "shape not a list": (lambda: build({"a": entry(shape=2)}, bytes(8)), True, ["'a'", "shape"]),
    "negative dimension": (lambda: build({"a": entry(shape=[-2])}, bytes(8)), True, ["'a'", "shape", "-2"]),
    "fraction": (lambda: build({"a": entry(shape=[2.0])}, bytes(8)), True, ["'a'", "shape"]),
    "true as a dimension": (lambda: build({"a": entry(shape=[True, 2])}, bytes(8)), True, ["'a'", "shape"]),
    "dimension of 2^64": (lambda: build({"a": entry(shape=[1 << 64])}, bytes(8)), True, ["'a'", "shape"]),
    "elements overflow": (
        lambda: build({"a": entry(shape=[1 << 33, 1 << 33])}, bytes(8)), True, ["'a'", "overflows 64 bits"]),
    "bits overflow": (lambda: build({"a": entry(shape=[1 << 62])}, bytes(8)), True, ["'a'", "overflows 64 bits"]),
    "overflow behind a zero": (
        lambda: build({"a": entry(shape=[0, 1 << 63, 1 << 63], offsets=[0, 0])}), False,
        ["'a'", "overflows 64 bits"]),
    "three offsets": (lambda: build({"a": entry(offsets=[0, 4, 8])}, bytes(8)), True, ["'a'", "data_offsets"]),
    "negative offset": (lambda: build({"a": entry(offsets=[-8, 0])}, bytes(8)), True, ["'a'", "data_offsets"]),
    "end before begin": (lambda: build({"a": entry(offsets=[8, 0])}, bytes(8)), True, ["'a'", "begin <= end"]),
    "span unequal to the shape": (
        lambda: build({"a": entry(offsets=[0, 12])}, bytes(12)), True, ["'a'", "takes 8 bytes", "span 12"]),
    "half a byte": (lambda: build({"a": entry("F4", [3], [0, 2])}, bytes(2)), True, ["'a'", "whole bytes"]),
    "hole at the start": (
        lambda: build({"a": entry(offsets=[8, 16])}, bytes(16)), True, ["'a'", "8 bytes", "belong to no tensor"]),
    "hole": (
        lambda: build({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), True,
        ["'b'", "4 bytes", "belong to no tensor"]),
    "overlap": (
        lambda: build({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), True, ["'b'", "overlaps tensor 'a'"]),
    "twice the same bytes": (
        lambda: build({"a": entry(), "b": entry()}, bytes(8)), True, ["'b'", "overlaps tensor 'a' by 8"]),
    "truncated data": (lambda: build(TWO, bytes(15)), True, ["'b'", "truncated"]),
    "offsets far outside": (
        lambda: build({"a": entry("U8", [1 << 50], [0, 1 << 50])}, bytes(8)), True, ["'a'", "1,125,899,906,842,"]),
    "bytes left over": (lambda: build(TWO, bytes(17)), True, ["1 bytes at the end"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, tmp_path: Path) -> None:
    content, package_refuses, expected = CASES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content())
    with pytest.raises(FormatError) as caught:
        read_header(path)
    message = str(caught.value)
    for part in [str(path), *expected]:
        assert part in message
    assert "\n" not in message
    assert len(message) < 700
    if package_refuses:
        with pytest.raises((safetensors.SafetensorError, OSError, ValueError)):
            safetensors.safe_open(path, "numpy").__enter__()


def test_hostile_shapes_take_no_time(tmp_path: Path) -> None:
    """A product of 400,000 dimensions of 2^63 would take minutes if it were computed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(build({"a": entry("U8", [0] + [1 << 63] * 400_000, [0, 0])}))
    with pytest.raises(FormatError, match="overflows"):
        read_header(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(FormatError, match="not a regular file"):
        read_header(tmp_path)
