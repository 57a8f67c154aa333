"""Older formats: what is damaged, or is not what it seems, ends in one error that says so."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from olderfiles import (
    OLDER,
    caffe_blob,
    caffe_layer,
    mxnet_array,
    mxnet_file,
    number,
    paddle_tensor,
    pickled,
    pickled_array,
    proto,
    text,
)

import llmkit
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.older import find_older, pickles, read_older
from llmkit.formats.older.base import TensorFile

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
ARRAY = pickled_array(VALUES)
V2 = 0xF993FAC9
END = struct.pack("<iii", 1, 0, 0)  # on the CPU, number 0, float32


def read(path: Path) -> TensorFile:
    found = find_older(path)
    assert found is not None
    return read_older(*found)


def check(path: Path, content: bytes, error: type[LlmkitError], message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


EVERYWHERE = {
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html>", "web page"),
    "an archive": (b"PK\x03\x04" + bytes(80), "zip archive"),
}


@pytest.mark.parametrize("suffix", ["pdiparams", "pdparams", "params", "caffemodel"])
@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_is_something_else(suffix: str, name: str, tmp_path: Path) -> None:
    content, message = EVERYWHERE[name]
    check(tmp_path / f"x.{suffix}", content, FormatError, message)


@pytest.mark.parametrize("suffix", ["pdiparams", "pdparams", "params", "caffemodel"])
def test_nothing_and_noise(suffix: str, tmp_path: Path) -> None:
    for content in (b"", b"\n", b"hello" * 20, bytes(100), b"\xff" * 100):
        (tmp_path / f"x.{suffix}").write_bytes(content)
        with pytest.raises(LlmkitError):
            read(tmp_path / f"x.{suffix}")


def test_names_of_other_files_are_not_taken() -> None:
    for name in ("x.safetensors", "x.gguf", "x.json", "missing.params", "tests"):
        assert find_older(Path(name)) is None


PADDLE = {
    "ends within a tensor": (paddle_tensor(VALUES)[:-1], "24 bytes are expected at byte .*, where 23 are left"),
    "ends within a description": (paddle_tensor(VALUES)[:22], "truncated or damaged"),
    "another version": (struct.pack("<IQIi", 0, 0, 1, 8) + bytes(8), "version 1 and a description of 8 bytes"),
    "a description without length": (struct.pack("<IQIi", 0, 0, 0, -1), "description of -1 bytes"),
    "more levels than bytes": (struct.pack("<IQ", 0, 1 << 40) + bytes(100), "truncated or damaged"),
    "a negative dimension": (
        struct.pack("<IQIi", 0, 0, 0, 13) + proto(1, 5) + proto(2, -3),
        r"'tensor.0': has the shape \[-3\], which cannot be",
    ),
    "an overflow": (
        struct.pack("<IQIi", 0, 0, 0, 22) + proto(1, 5) + proto(2, 1 << 61) + proto(2, 1 << 61),
        r"the size of shape .* overflows 64 bits",
    ),
    "no protobuf": (struct.pack("<IQIi", 0, 0, 0, 2) + b"\xff\xff", "has a damaged description"),
}


@pytest.mark.parametrize("name", PADDLE)
def test_paddle(name: str, tmp_path: Path) -> None:
    check(tmp_path / "x.pdiparams", PADDLE[name][0], FormatError, PADDLE[name][1])


def test_paddle_types_that_are_not_known(tmp_path: Path) -> None:
    content = struct.pack("<IQIi", 0, 0, 0, 4) + proto(1, 25) + proto(2, 1)
    check(tmp_path / "x.pdiparams", content, UnsupportedError, "tensor 'tensor.0' has type 25")


def parameter(name: object, shape: object) -> dict[str, object]:
    return {"#": "p", "A": [0, 1, 1, name], "O": {"TT": {"D": [{"#": "0.t_f32"}, shape]}}}


def json_program(*parameters: object) -> bytes:
    return json.dumps({"program": {"regions": [{"blocks": [{"ops": list(parameters)}]}]}}).encode()


PROGRAMS = {
    "not JSON": ("json", b"{", "is not valid JSON"),
    "other JSON": ("json", b'{"a": 1}', r"is no program of PaddlePaddle \(KeyError\('program'\)\); move the program"),
    "JSON of other kinds": ("json", b'{"program": 1}', "is no program of PaddlePaddle"),
    "a number for a name": ("json", json_program(parameter(1, [2, 3])), "is no program of PaddlePaddle"),
    "a text for a shape": ("json", json_program(parameter("a", "xx")), "is no program of PaddlePaddle"),
    "too few": ("json", json_program(), "holds 1 tensors, but .* names 0: they are not of one model; move the program"),
    "another shape": ("json", json_program(parameter("a", [3, 2])), r"'a': has the shape \[2, 3\], but \[3, 2\]"),
    "not protobuf": ("pdmodel", b"\xff", "is no program of PaddlePaddle"),
    "other protobuf": ("pdmodel", proto(1, 5), "is no program of PaddlePaddle"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_do_not_fit(name: str, tmp_path: Path) -> None:
    suffix, content, message = PROGRAMS[name]
    (tmp_path / f"x.{suffix}").write_bytes(content)
    (tmp_path / "x.pdiparams").write_bytes(paddle_tensor(VALUES))
    with pytest.raises(FormatError, match=message):
        read(tmp_path / "x.pdiparams")


def test_two_parameters_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(json_program(parameter("a", [2, -1]), parameter("a", [2, 3])))
    check(tmp_path / "x.pdiparams", paddle_tensor(VALUES) * 2, FormatError, "'a': occurs twice")


MXNET = {
    "no array after the count": (mxnet_file([], [])[:16] + struct.pack("<QQ", 1 << 60, 0), "truncated or damaged"),
    "many dimensions": (struct.pack("<QQQI", 0x112, 0, 1, 70) + bytes(900), "'number 0': begins with 0x46, neither"),
    "another number of names": (mxnet_file([mxnet_array(VALUES)], ["a", "b"]), "has 1 arrays and 2 names"),
    "a long name": (mxnet_file([mxnet_array(VALUES)], [])[:-8] + struct.pack("<QQ", 1, 1 << 40), "a name of"),
    "a name that is no text": (mxnet_file([mxnet_array(VALUES)], ["aa"])[:-2] + b"\xff\xff", "is not valid UTF-8"),
    "two of one name": (mxnet_file([mxnet_array(VALUES)] * 2, ["a", "a"]), "'a': occurs twice"),
    "more bytes": (mxnet_file([mxnet_array(VALUES)], ["a"]) + b"x", "1 bytes at the end belong to no array"),
    "another storage": (mxnet_file([struct.pack("<Ii", V2, 3)], ["a"]), "storage of kind 3; known are 0 to 2"),
    "a large dimension": (
        mxnet_file([struct.pack("<Iiiqq", V2, 0, 2, 1 << 40, 1 << 40) + END], ["a"]), "overflows 64 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", MXNET)
def test_mxnet(name: str, tmp_path: Path) -> None:
    check(tmp_path / "x.params", MXNET[name][0], FormatError, MXNET[name][1])


def test_mxnet_types_that_are_not_known(tmp_path: Path) -> None:
    array = struct.pack("<Iiiqiii", V2, 0, 1, 3, 1, 0, 9)
    check(tmp_path / "x.params", mxnet_file([array], ["a"]), UnsupportedError, "tensor 'number 0' has type 9")


def test_mxnet_arrays_that_were_never_given_values(tmp_path: Path) -> None:
    unset = struct.pack("<Iii", V2, 0, 0), struct.pack("<Iii", 0xF993FACA, 0, -1), struct.pack("<I", 0)
    (tmp_path / "x.params").write_bytes(mxnet_file([*unset, mxnet_array(VALUES)], ["a", "b", "c", "d"]))
    found = read(tmp_path / "x.params")
    assert [tensor.name for tensor in found.tensors] == ["d"]
    assert found.notes[0] == "array 'a' was never given values and is left out"
    assert len(found.notes) == 3


def row_sparse(rows: list[int], shape: tuple[int, int], stored: tuple[int, ...] | None = None) -> bytes:
    stored = (len(rows), shape[1]) if stored is None else stored
    content = struct.pack("<Ii", V2, 1) + struct.pack(f"<i{len(stored)}q", len(stored), *stored)
    content += struct.pack("<iqq", 2, *shape) + END + struct.pack("<iiq", 6, 1, len(rows))
    return content + bytes(4 * len(rows) * shape[1]) + np.array(rows, np.int64).tobytes()


def csr(starts: list[int], columns: list[int], shape: tuple[int, int]) -> bytes:
    content = struct.pack("<Iiiq", V2, 2, 1, len(columns)) + struct.pack("<iqq", 2, *shape) + END
    content += struct.pack("<iiqiiq", 6, 1, len(starts), 6, 1, len(columns)) + bytes(4 * len(columns))
    return content + np.array(starts, np.int64).tobytes() + np.array(columns, np.int64).tobytes()


@pytest.mark.parametrize(
    "array",
    [
        row_sparse([1, 4], (4, 3)), row_sparse([-1, 2], (4, 3)), row_sparse([2, 1], (4, 3)), row_sparse([1, 1], (4, 3)),
        csr([0, 1, 3], [0, 4, 1], (2, 4)), csr([0, 1, 3], [0, -1, 1], (2, 4)), csr([0, 2, 1], [0, 1, 1], (2, 4)),
        csr([0, 1, 9], [0, 1, 1], (2, 4)), csr([-1, 1, 3], [0, 1, 1], (2, 4)),
    ],
)  # fmt: skip
def test_indices_out_of_bounds_or_order(array: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.params").write_bytes(mxnet_file([array], ["a"]))
    found = read(tmp_path / "x.params")
    with pytest.raises(FormatError, match="has indices out of order or bounds"):
        found.values["a"].read(0, found.tensors[0].nbytes)


def test_sparse_shapes_that_do_not_fit(tmp_path: Path) -> None:
    array = row_sparse([1, 2], (4, 3), (2, 4))
    check(tmp_path / "x.params", mxnet_file([array], ["a"]), FormatError, r"stores \[2, 4\] values for 2 indices")


def test_a_sparse_array_may_not_grow_without_bounds(tmp_path: Path) -> None:
    array = row_sparse([1], (1 << 30, 4))
    (tmp_path / "x.params").write_bytes(mxnet_file([array], ["a"]))
    assert read(tmp_path / "x.params").tensors[0].nbytes == 1 << 34
    with pytest.raises(UnsupportedError, match="would take 17,179,869,184 bytes, over 1,000 times as many as it has"):
        llmkit.convert(tmp_path / "x.params", "safetensors", output=tmp_path / "x.safetensors")


CAFFE = {
    "no blobs": (proto(1, b"net"), "holds no blobs of layers"),
    "ends within a layer": (caffe_layer("a", caffe_blob(VALUES))[:-1], "field 100 at byte 0 wants"),
    "a group": (b"\x0b", "no field begins at byte 0"),
    "a number without end": (b"\x08" + b"\xff" * 12, "no number ends at byte"),
    "a long field": (b"\x0a" + b"\xff" * 9 + b"\x01", "field 1 at byte 0 wants 18,446,744,073,709,551,615 bytes"),
    "fewer values": (caffe_layer("a", proto(1, 7) + proto(5, bytes(8))), r"'a/0': F32 \[7, 0, 0, 0\] takes 0 bytes"),
    "values of two kinds": (caffe_layer("a", proto(5, bytes(4)) + proto(8, bytes(8))), "has values in the fields"),
    "two layers of one name": (caffe_layer("a", caffe_blob(VALUES)) * 2, "'a/0': occurs twice"),
    "a name that is no text": (proto(100, proto(1, b"\xff") + proto(7, b"")), "name is not valid UTF-8"),
    "a negative dimension": (caffe_layer("a", proto(1, -1) + proto(5, bytes(4))), "'a/0': has the shape"),
    "many dimensions": (caffe_layer("a", proto(7, proto(1, b"\x01" * 70)) + proto(5, bytes(4))), "which cannot be"),
}


@pytest.mark.parametrize("name", CAFFE)
def test_caffe(name: str, tmp_path: Path) -> None:
    check(tmp_path / "x.caffemodel", CAFFE[name][0], FormatError, CAFFE[name][1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
        (caffe_layer("a", proto(10, 3) + proto(12, bytes(4))), "has the raw type 3"),
        (caffe_layer("a", b"\x2d" + bytes(4)), "not packed"),
    ],
)
def test_caffe_of_other_kinds(content: bytes, message: str, tmp_path: Path) -> None:
    check(tmp_path / "x.caffemodel", content, UnsupportedError, message)


def in_pickle(content: bytes) -> bytes:
    return b"\x80\x04" + content + b"."


PICKLES: dict[str, tuple[bytes, str]] = {
    "no end": (pickled({"a": ARRAY})[:-1], "1 bytes are expected at byte"),
    "fewer values": (pickled({"a": ARRAY.replace(b"\x18" + bytes(7), b"\x10" + bytes(7))}), "damaged"),
    "nothing on the stack": (in_pickle(b""), "nothing is on the stack"),
    "a mark on the stack": (in_pickle(b"("), "nothing is on the stack"),
    "no mark": (in_pickle(b"}u"), "no mark is on the stack"),
    "a key without value": (in_pickle(b"}(Nu"), "a key is without value"),
    "a key that cannot be": (in_pickle(b"}]Ns"), "a key is a list"),
    "no dictionary": (in_pickle(b"]NNs"), "no dict is on the stack"),
    "what was not remembered": (in_pickle(b"h\x07"), "number 7 was not remembered"),
    "remembering nothing": (in_pickle(b"q\x00"), "nothing is on the stack"),
    "a long integer": (in_pickle(b"\x8b\xff\xff\xff\x7f"), "an integer of 2,147,483,647 bytes"),
    "a long name": (in_pickle(b"c" + b"a" * 70000), "a name is too long"),
    "a long text": (in_pickle(b"\x8d" + b"\xff" * 7 + b"\x7f"), "truncated or damaged"),
    "an opcode of instances": (in_pickle(b"\x81"), r"opcode b'\\x81' at byte 2 has no place"),
    "calling what is no function": (in_pickle(b"N)R"), "no function and its arguments"),
    "a function of other arguments": (in_pickle(b"cnumpy\nndarray\n)R"), "ndarray has arguments that do not fit"),
    "copying a list": (in_pickle(b"cbuiltins\ntuple\n]\x85R"), "tuple has arguments that do not fit"),
    "a state of nothing": (in_pickle(b"]Nb"), "a state that does not fit"),
    "another coding": (
        in_pickle(b"c_codecs\nencode\n" + text("a") + text("utf-16") + b"\x86R"), "encode has arguments"),
    "no tensors": (in_pickle(b"}"), "holds no tensors"),
    "none but numbers": (pickled({"a": number(1)}), "holds no tensors"),
    "a name that is no text": (in_pickle(b"}X\x01\x00\x00\x00\xffNs"), "a text is not valid UTF-8"),
    "one name twice": (pickled({"a.b": ARRAY, "a": b"}(" + text("b") + ARRAY + b"u"}), "'a.b': occurs twice"),
    "slices without words": (pickled({"a": ARRAY, "UnpackBigParamInfor@@": b"}(" + text("b") + b"Nu"}), "does not say"),
    "slices that are missing": (
        pickled({"a": ARRAY, "UnpackBigParamInfor@@": b"}(" + text("w") + b"}(" + text("OriginShape") + b"(K\x06t"
                 + text("slices") + b"](" + text("w@@.0") + b"euu"}), "'w': its slices are not there"),
    "slices of another shape": (
        pickled({"a": ARRAY, "UnpackBigParamInfor@@": b"}(" + text("w") + b"}(" + text("OriginShape") + b"(K\x07t"
                 + text("slices") + b"](" + text("a") + b"euu"}), "'w': its slices are not F32"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name: str, tmp_path: Path) -> None:
    check(tmp_path / "x.pdparams", PICKLES[name][0], FormatError, PICKLES[name][1])


REFUSED: dict[str, tuple[bytes, str]] = {
    "code": (in_pickle(b"cos\nsystem\n" + text("touch harm") + b"\x85R"), "asks for os.system, code that loading it"),
    "code by the stack": (in_pickle(text("os") + text("system") + b"\x93"), "asks for os.system"),
    "a part of what is known": (in_pickle(b"cnumpy\nload\n"), "asks for numpy.load"),
    "eval": (in_pickle(b"cbuiltins\neval\n"), "asks for builtins.eval"),
    "big-endian": (pickled({"a": pickled_array(VALUES, order=">")}), "tensor 'a' is big-endian"),
    "one value twice": (pickled({"a": b"}q\x07(" + text("b") + ARRAY + b"u", "c": b"h\x07"}), "what another entry is"),
    "a list within itself": (in_pickle(b"]q\x00h\x00a"), "what another entry is"),
    "a long name": (
        pickled({"a" * 300: b"}(" + text("b" * 300) + b"}(" + text("c") + ARRAY + b"uu"}),
        "a name of more than 512",
    ),
    "deep nesting": (in_pickle(b"]" * 40 + b"a" * 39), "is nested more than 16 deep"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pickles_that_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(tmp_path / "x.pdparams", REFUSED[name][0], UnsupportedError, REFUSED[name][1])
    assert not (tmp_path / "harm").exists()


def test_steps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MAX_STEPS", 100)
    check(tmp_path / "x.pdparams", in_pickle(b"}" * 200), UnsupportedError, "has more than 100 steps")


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "not UTF-8": lambda data: data.replace(b"\xc3\xbf", b"\xff\xff", 1),
    "a character beyond Latin-1": lambda data: data.replace(b"\xc3\xbf", b"\xd0\x96", 1),
    "fewer characters": lambda data: data.replace(b"ab", b"\xc3\xbe", 1),
    "more characters": lambda data: data.replace(b"\xc3\xbf", b"ab", 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_arrays_as_damaged_text(name: str, tmp_path: Path) -> None:
    values = np.frombuffer(b"ab\xff\x00" * 6, np.uint8)
    content = pickled({"a": pickled_array(values, as_text=True)})
    changed = CHANGES[name](content)
    assert len(changed) == len(content)
    (tmp_path / "x.pdparams").write_bytes(changed)
    found = read(tmp_path / "x.pdparams")
    with pytest.raises(FormatError, match=r"'a': (is stored as a text that is damaged|takes 24 bytes, but a text)"):
        found.values["a"].read(0, 24)


def test_arrays_of_records_and_objects(tmp_path: Path) -> None:
    state = b"\x89\x88\x87R(K\x03" + text("|") + b"N(" + text("x") + b"t}K\x08K\x01K\x00tb"
    (tmp_path / "x.pdparams").write_bytes(in_pickle(b"cnumpy\ndtype\n" + text("V8") + state))
    with pytest.raises(UnsupportedError, match="an array of records"):
        read(tmp_path / "x.pdparams")
    words = pickled_array(VALUES).replace(text("f4"), text("U1"))
    (tmp_path / "x.pdparams").write_bytes(pickled({"words": words, "a": ARRAY}))
    found = read(tmp_path / "x.pdparams")
    assert [tensor.name for tensor in found.tensors] == ["a"]
    assert found.notes == ("entries that are no tensors of numbers are left out: 'words'",)


def test_a_file_that_changes(tmp_path: Path) -> None:
    """What was read of it once may not be there any more."""
    content = (OLDER / "sparse.params").read_bytes()
    (tmp_path / "x.params").write_bytes(content)
    found = read(tmp_path / "x.params")
    (tmp_path / "x.params").write_bytes(content[:60])
    with pytest.raises(FormatError, match="too early; it has changed"):
        found.values["cells"].read(0, 96)
