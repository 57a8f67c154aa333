"""LiteRT's files: what leads out of a file is refused before the runtime reads it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import Mutation, binary

from llmkit.errors import FormatError
from llmkit.formats.tflite import check_tflite


def table(b: Any, fields: dict[int, tuple[str, int]]) -> int:
    """A table of fields by number, each with the kind of its slot and its value or place."""
    b.StartObject(max(fields, default=-1) + 1)
    for at, (kind, found) in fields.items():
        if kind == "place":
            b.PrependUOffsetTRelativeSlot(at, found, 0)
        else:
            getattr(b, f"Prepend{kind}Slot")(at, found, 0)
    return int(b.EndObject())


def vector(b: Any, places: list[int]) -> tuple[str, int]:
    b.StartVector(4, len(places), 4)
    for place in reversed(places):
        b.PrependUOffsetTRelative(place)
    return "place", int(b.EndVector())


def numbers(b: Any, found: list[int]) -> tuple[str, int]:
    b.StartVector(4, len(found), 4)
    for number in reversed(found):
        b.PrependInt32(number)
    return "place", int(b.EndVector())


def model(
    *, buffer: int = 1, code: int = 0, inputs: tuple[int, ...] = (0, -1), graph: int = 0, tensor: int = 1, size: int = 0
) -> bytes:
    """Of one operator on two tensors, with a signature."""
    b = flatbuffers.Builder(0)
    text = ("place", b.CreateString("x"))
    content = ("place", b.CreateByteVector(b"12345678"))
    buffers = vector(b, [table(b, {}), table(b, {0: content}), table(b, {1: ("Uint64", 8), 2: ("Uint64", size)})])
    codes = vector(b, [table(b, {1: text, 3: ("Int32", 32)})])
    shape, scales = numbers(b, [2]), numbers(b, [1])
    rounding = table(b, {2: scales, 6: ("Int32", 1)})
    tensors = [table(b, {0: shape, 2: ("Uint32", i and buffer), 3: text, 4: ("place", rounding)}) for i in range(2)]
    all_tensors, options = vector(b, tensors), table(b, {0: ("Int8", 1)})
    used, made = numbers(b, list(inputs)), numbers(b, [1])
    operator = {0: ("Uint32", code), 1: used, 2: made, 3: ("Uint8", 5), 4: ("place", options)}
    operators = vector(b, [table(b, operator)])
    graphs = vector(b, [table(b, {0: all_tensors, 1: numbers(b, [0]), 2: numbers(b, [1]), 3: operators, 4: text})])
    maps = vector(b, [table(b, {0: text, 1: ("Uint32", tensor)})])
    signatures = vector(b, [table(b, {0: maps, 1: maps, 2: text, 4: ("Uint32", graph)})])
    whole = {0: ("Uint32", 3), 1: codes, 2: graphs, 3: text, 4: buffers, 7: signatures}
    b.Finish(table(b, whole), file_identifier=b"TFL3")
    return bytes(b.Output())


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(model())
    check_tflite(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buffer": 3}, "buffer is missing"),
        ({"code": 1}, "code is missing"),
        ({"inputs": (2,)}, "tensor is missing"),
        ({"inputs": (-2,)}, "tensor is missing"),
        ({"graph": 1}, "graph is missing"),
        ({"tensor": 2}, "tensor is missing"),
        ({"size": 1 << 62}, "ends beyond it"),
    ],
)
def test_indices(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(model(**changes))
    with pytest.raises(FormatError, match=message):
        check_tflite(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    whole = model()
    for n in range(len(whole) - 8):  # the last bytes are a text's
        path.write_bytes(whole[:n])
        with pytest.raises(FormatError):
            check_tflite(path)


@given(st.lists(binary(len(model())), min_size=1, max_size=3))
def test_damaged_bytes(tmp_path_factory: pytest.TempPathFactory, mutations: list[Mutation]) -> None:
    content = model()
    for mutation in mutations:
        content = mutation(content)
    path = tmp_path_factory.mktemp("m") / "m.tflite"
    path.write_bytes(content)
    with suppress(FormatError):
        check_tflite(path)
