"""Planned GGUF files, read back by llmkit, ggml and gguf-py; what cannot be written, and how that is said."""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import ggml_reader
import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import UnsupportedError
from llmkit.formats.gguf import (
    Value,
    ValueType,
    array,
    boolean,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    open_gguf,
    plan_layout,
    string,
    u8,
    u16,
    u32,
    u64,
)
from llmkit.types import BLOCK_LAYOUTS, TensorType, tensor_bytes

METADATA = {
    "general.architecture": string("llama"),
    "u8": u8(255),
    "i8": i8(-128),
    "u16": u16(65535),
    "i16": i16(-32768),
    "u32": u32(2**32 - 1),
    "i32": i32(-(2**31)),
    "u64": u64(2**64 - 1),
    "i64": i64(-(2**63)),
    "f32": f32(0.1),
    "f64": f64(0.1),
    "yes": boolean(True),
    "no": boolean(False),
    "text": string("größer 🦙"),
    "empty": string(""),
    "bytes": string(b"\xff\x00\xfe"),
    "strings": array(ValueType.STRING, ["a", "", "🦙", b"\xe9"]),
    "floats": array(ValueType.FLOAT32, np.array([0.1, -inf, 3e38])),
    "ints": array(ValueType.INT32, np.array([1, -2], dtype=np.int64)),
    "flags": array(ValueType.BOOL, np.array([True, False])),
    "nothing": array(ValueType.UINT64, []),
}
TENSORS = [
    ("token_embd.weight", TensorType.Q8_0, (5, 64)),
    ("output_norm.weight", TensorType.F32, (7,)),
    ("empty", TensorType.F16, (0, 3)),
    ("scalar", TensorType.F32, ()),
    ("four", TensorType.BF16, (2, 3, 4, 5)),
    ("blk.0.ffn_down.weight", TensorType.Q4_K, (3, 512)),
]


def write(path: Path, layout: Any, contents: list[bytes]) -> None:
    with path.open("wb") as file:
        file.write(layout.header)
        for offset, content in zip(layout.offsets, contents, strict=True):
            file.seek(offset)
            file.write(content)
        file.truncate(layout.total_bytes)


@pytest.mark.parametrize("alignment", [32, 1, 8, 64, 4096])
def test_planned_file_is_read_by_all(alignment: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [rng.bytes(tensor_bytes(type, shape)) for _, type, shape in TENSORS]
    layout = plan_layout(METADATA, TENSORS, alignment)
    assert all(offset % alignment == 0 for offset in layout.offsets)
    assert layout.offsets[0] == len(layout.header)
    path = tmp_path / "model.gguf"
    write(path, layout, contents)
    assert path.stat().st_size == layout.total_bytes
    expected = METADATA if alignment == 32 else {**METADATA, "general.alignment": u32(alignment)}
    with open_gguf(path) as file:
        assert (file.version, file.alignment, file.data_offset) == (3, alignment, len(layout.header))
        assert dict(file.metadata) == expected
        assert list(file.metadata) == list(expected)
        for (name, type, shape), offset, content in zip(TENSORS, layout.offsets, contents, strict=True):
            info = file.tensors[name]
            assert (info.dtype, info.shape, info.offset, info.nbytes) == (type.name, shape, offset, len(content))
            assert file.raw(name).tobytes() == content
        theirs = ggml_reader.read(path)
        assert theirs is not None
        assert (theirs.keys, theirs.alignment) == (list(expected), alignment)
        assert [offset for _, offset, _ in theirs.tensors.values()] == list(layout.offsets)


def test_gguf_py_reads_the_same(tmp_path: Path) -> None:
    metadata = {key: value for key, value in METADATA.items() if key not in ("bytes", "strings")}  # it wants UTF-8
    tensors = [tensor for tensor in TENSORS if tensor[2]]
    layout = plan_layout(metadata, tensors)
    path = tmp_path / "model.gguf"
    contents = [np.random.default_rng(0).bytes(tensor_bytes(type, shape)) for _, type, shape in tensors]
    write(path, layout, contents)
    reader = gguf.GGUFReader(path)
    for key, value in metadata.items():
        expected = list(value.data) if value.type == ValueType.ARRAY else value.data
        assert reader.fields[key].contents() == expected, key
    for theirs, (name, type, shape), content in zip(reader.tensors, tensors, contents, strict=True):
        assert (theirs.name, theirs.tensor_type, theirs.shape.tolist()) == (name, type, list(shape[::-1]))
        assert theirs.data.tobytes() == content


def test_same_bytes_as_gguf_py(tmp_path: Path) -> None:
    """A file that GGUFWriter can write comes out the same, byte for byte."""
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 30)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    one, two = np.arange(10, dtype=np.float32).reshape(2, 5), np.arange(3, dtype=np.float16)
    writer.add_tensor("one", one)
    writer.add_tensor("two", two)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(30),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "tokenizer.ggml.tokens": array(ValueType.STRING, ["a", "b", "ü"]),
        "tokenizer.ggml.add_bos_token": boolean(False),
    }
    layout = plan_layout(metadata, [("one", TensorType.F32, (2, 5)), ("two", TensorType.F16, (3,))])
    ours = tmp_path / "ours.gguf"
    write(ours, layout, [one.tobytes(), two.tobytes()])
    assert ours.read_bytes() == path.read_bytes()


def test_packaged_header_is_reproduced(smollm2_gguf: Path) -> None:
    with open_gguf(smollm2_gguf) as file:
        tensors = [(info.name, TensorType[info.dtype], info.shape) for info in file.tensors.values()]
        layout = plan_layout(file.metadata, tensors)
        with smollm2_gguf.open("rb") as stored:
            assert layout.header == stored.read(file.data_offset)
        assert layout.offsets == tuple(info.offset for info in file.tensors.values())
        assert layout.total_bytes == smollm2_gguf.stat().st_size


@pytest.mark.parametrize("type", list(BLOCK_LAYOUTS), ids=lambda type: type.name)
def test_every_type_has_ggmls_size(type: TensorType, tmp_path: Path) -> None:
    shape = (2, 3, BLOCK_LAYOUTS[type].block_size * 2)
    layout = plan_layout({}, [("a", type, shape), ("b", TensorType.F32, (1,))])
    path = tmp_path / "model.gguf"
    write(path, layout, [b"", b""])
    theirs = ggml_reader.read(path)
    assert theirs is not None
    assert theirs.tensors["a"] == (int(type), layout.offsets[0], tensor_bytes(type, shape))


def test_general_alignment_given_by_the_caller() -> None:
    given = {"general.alignment": u32(32)}
    assert b"general.alignment" in plan_layout(given, []).header
    assert b"general.alignment" not in plan_layout({}, []).header
    with pytest.raises(UnsupportedError, match=r"general.alignment"):
        plan_layout(given, [], alignment=64)
    with pytest.raises(UnsupportedError, match=r"general.alignment"):
        plan_layout({"general.alignment": i32(32)}, [])


@pytest.mark.parametrize("alignment", [0, -32, 33, 1 << 31])
def test_alignment_that_is_none(alignment: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        plan_layout({}, [], alignment)


REFUSED_TENSORS = {
    "empty name": (("", TensorType.F32, (1,)), "empty name"),
    "name of 64 bytes": (("é" * 32, TensorType.F32, (1,)), "64 bytes"),
    "name with NUL": (("a\0", TensorType.F32, (1,)), "NUL"),
    "name with half a surrogate pair": (("a\ud800", TensorType.F32, (1,)), "not valid Unicode"),
    "five dimensions": (("a", TensorType.F32, (1, 1, 1, 1, 1)), "'a': 5 dimensions"),
    "negative dimension": (("a", TensorType.F32, (-1,)), "'a': dimension -1"),
    "too many elements": (("a", TensorType.F32, (1 << 32, 1 << 31)), "'a'"),
    "row not divisible": (("a", TensorType.Q4_K, (4, 576)), "'a': a row of 576"),
    "scalar of blocks": (("a", TensorType.Q8_0, ()), "'a': a row of 1"),
}


@pytest.mark.parametrize("name", REFUSED_TENSORS)
def test_tensor_that_gguf_cannot_hold(name: str) -> None:
    tensor, expected = REFUSED_TENSORS[name]
    with pytest.raises(UnsupportedError) as caught:
        plan_layout({}, [tensor])
    assert expected in str(caught.value)


def test_tensors_of_one_name() -> None:
    with pytest.raises(UnsupportedError, match="'a'"):
        plan_layout({}, [("a", TensorType.F32, (1,)), ("a", TensorType.F32, (1,))])


def test_sum_of_sizes_too_large() -> None:
    huge = [(name, TensorType.F64, (1 << 59,)) for name in "abc"]
    with pytest.raises(UnsupportedError, match="in all"):
        plan_layout({}, huge)


REFUSED_VALUES: dict[str, Value] = {
    "integer out of range": Value(ValueType.UINT8, 256),
    "negative": Value(ValueType.UINT32, -1),
    "fraction as integer": Value(ValueType.UINT32, 1.5),
    "text as number": Value(ValueType.FLOAT32, "1"),
    "number as text": Value(ValueType.STRING, 1),
    "number as boolean": Value(ValueType.BOOL, 1),
    "float out of range": Value(ValueType.FLOAT32, 1e39),
    "array of arrays": Value(ValueType.ARRAY, ((1,),), ValueType.ARRAY),
    "array without element type": Value(ValueType.ARRAY, (1,)),
    "one string as an array": Value(ValueType.ARRAY, "abc", ValueType.STRING),
    "half a surrogate pair": Value(ValueType.STRING, "\ud800"),
}


@pytest.mark.parametrize("name", REFUSED_VALUES)
def test_value_that_gguf_cannot_hold(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"metadata 'some\.key': "):
        plan_layout({"some.key": REFUSED_VALUES[name]}, [])


def test_keys_that_gguf_cannot_hold() -> None:
    with pytest.raises(UnsupportedError, match="empty"):
        plan_layout({"": u32(1)}, [])
    with pytest.raises(UnsupportedError, match="metadata"):
        plan_layout({"\udcff": u32(1)}, [])
    with pytest.raises(UnsupportedError, match="NUL"):
        plan_layout({"a\0": u32(1)}, [])
    with pytest.raises(UnsupportedError, match="65,536 bytes"):
        plan_layout({"k" * 65536: u32(1)}, [])


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        *[(u8, 256), (u8, -1), (i8, 128), (u16, 1 << 16), (i16, 1 << 15), (u32, 1 << 32), (i32, 1 << 31)],
        *[(u64, 1 << 64), (i64, 1 << 63), (u32, 1.0), (u32, "1"), (f32, 1e39), (f32, "1"), (f64, True)],
        *[(boolean, 1), (string, 1), (string, None)],
    ],
)
def test_constructors_check(make: Callable[[Any], Value], argument: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        make(argument)


def test_strings_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.formats.gguf.values.MAX_STRING_BYTES", 10)
    assert string("éééé").data == "éééé"
    with pytest.raises(ValueError, match="12 bytes"):
        string("éééééé")
    with pytest.raises(UnsupportedError, match="'k'"):
        plan_layout({"k": Value(ValueType.STRING, "x" * 11)}, [])


def test_arrays_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.formats.gguf.values.MAX_ARRAY_ITEMS", 3)
    with pytest.raises(ValueError, match="4 items"):
        array(ValueType.UINT8, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="one-dimensional"):
        array(ValueType.UINT8, np.zeros((1, 1), np.uint8))


def test_f32_is_rounded_when_made() -> None:
    assert f32(0.1).data == np.float32(0.1)
    assert f32(inf).data == inf
    assert isnan(f32(nan).data)
    assert f32(1e-50).data == 0
    assert array(ValueType.FLOAT32, [0.1]).data == (float(np.float32(0.1)),)


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
INTEGERS = {
    ValueType.UINT8: (0, 255), ValueType.INT8: (-128, 127), ValueType.UINT16: (0, 65535),
    ValueType.INT16: (-32768, 32767), ValueType.UINT32: (0, 2**32 - 1), ValueType.INT32: (-(2**31), 2**31 - 1),
    ValueType.UINT64: (0, 2**64 - 1), ValueType.INT64: (-(2**63), 2**63 - 1),
}  # fmt: skip
ITEMS: dict[ValueType, st.SearchStrategy[Any]] = {
    **{type: st.integers(low, high) for type, (low, high) in INTEGERS.items()},
    ValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    ValueType.FLOAT64: st.floats(allow_nan=False),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: TEXT | st.binary(max_size=20),
}
VALUES = st.sampled_from(list(ITEMS)).flatmap(
    lambda type: (
        st.builds(array, st.just(type), st.lists(ITEMS[type], max_size=5))
        | st.builds(lambda item: Value(type, array(type, [item]).data[0]), ITEMS[type])
    )
)


# Keys that readers give a meaning, and so a type, are tested elsewhere.
KEYS = TEXT.filter(lambda key: key != "" and "\0" not in key and not key.startswith(("general.alignment", "split.")))


@given(metadata=st.dictionaries(KEYS, VALUES, max_size=8))
def test_any_metadata_comes_back(metadata: dict[str, Value], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(plan_layout(metadata, []).header)
    with open_gguf(path) as file:
        assert dict(file.metadata) == metadata
        assert plan_layout(file.metadata, []).header == path.read_bytes()  # 0.0 == -0.0, but not their bytes


def test_f32_signs_and_special_values_are_kept() -> None:
    specials = [0.0, -0.0, inf, -inf, 1e-45]
    header = plan_layout({"k": array(ValueType.FLOAT32, specials)}, []).header
    assert struct.pack("<5f", *specials) in header
