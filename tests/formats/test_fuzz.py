"""Real headers, damaged: only LlmkitError may come out, and memory stays in proportion to the header.

What is accepted in spite of the damage must be accepted by the reference readers too, and equal theirs.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import ggml_reader
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import EXTREMES, Mutation, binary

from llmkit.errors import LlmkitError
from llmkit.formats.gguf import Value, ValueType, array, open_gguf, plan_layout
from llmkit.formats.safetensors import read_header
from llmkit.types import TensorType


def outcome(action: Callable[[], object]) -> tuple[str | None, int]:
    """The message of the LlmkitError that `action` raises, if it does, and the peak of allocated bytes."""
    problem = None
    tracemalloc.start()
    try:
        action()
    except LlmkitError as error:
        problem = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return problem, peak


class Header:
    """A valid header and the size of its file; no dataclass, whose contents would fill the reports."""

    def __init__(self, content: bytes, size: int) -> None:
        self.content = content
        self.size = size


def damaged(content: bytes, mutations: Sequence[Mutation], cut: int | None) -> bytes:
    for mutation in mutations:
        content = mutation(content)
    return content[:cut]


def write(path: Path, header: bytes, size: int) -> None:
    """`header`, then a hole up to `size`."""
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(max(size, len(header)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# GGUF


@pytest.fixture(scope="module")
def gguf_headers(smollm2_gguf: Path) -> tuple[Header, Header]:
    """The packaged model's header, and the same with its long arrays cut to 30 items."""
    with open_gguf(smollm2_gguf) as file, smollm2_gguf.open("rb") as stored:
        whole = stored.read(file.data_offset)
        tensors = [(info.name, TensorType[info.dtype], info.shape) for info in file.tensors.values()]

        def cut(value: Value) -> Value:
            return array(value.element_type, value.data[:30]) if value.type == ValueType.ARRAY else value

        short = plan_layout({key: cut(value) for key, value in file.metadata.items()}, tensors).header
    data_bytes = smollm2_gguf.stat().st_size - len(whole)
    return Header(whole, len(whole) + data_bytes), Header(short, len(short) + data_bytes)


def check_gguf(path: Path, header: bytes) -> None:
    problem, peak = outcome(lambda: open_gguf(path).close())
    assert peak < (1 << 20) + 20 * len(header)
    if problem is not None:
        assert str(path) in problem
        return
    size = path.stat().st_size
    with open_gguf(path) as file:
        for key in file.metadata:
            file.get(key)
        end = file.data_offset
        for name, info in file.tensors.items():
            assert end <= info.offset <= info.offset + info.nbytes <= size
            assert file.raw(name).nbytes == info.nbytes
            end = info.offset + info.nbytes
        theirs = ggml_reader.read(path)
        assert theirs is not None
        assert list(file.metadata) == theirs.keys
        assert [(name, info.offset, info.nbytes) for name, info in file.tensors.items()] == [
            (name, offset, n_bytes) for name, (_, offset, n_bytes) in theirs.tensors.items()
        ]


# The short header's length is not known when the strategy is made; positions beyond the end do nothing.
SHORT_HEADER_BYTES = 19_000


@settings(max_examples=400)
@given(
    mutations=st.lists(binary(SHORT_HEADER_BYTES), min_size=1, max_size=3),
    cut=st.none() | st.none() | st.none() | st.integers(0, SHORT_HEADER_BYTES),
    keep_data=st.sampled_from([True, True, True, False]),
)
def test_damaged_gguf_header(
    mutations: list[Mutation],
    cut: int | None,
    keep_data: bool,
    folder: Path,
    gguf_headers: tuple[Header, Header],
) -> None:
    _, short = gguf_headers
    write(folder / "short.gguf", damaged(short.content, mutations, cut), short.size if keep_data else 0)
    check_gguf(folder / "short.gguf", short.content)


@settings(max_examples=40)
@given(mutation=binary(1_785_000), cut=st.none() | st.integers(0, 1_785_000))
def test_damaged_gguf_vocabulary(
    mutation: Mutation, cut: int | None, folder: Path, gguf_headers: tuple[Header, Header]
) -> None:
    whole, _ = gguf_headers
    write(folder / "whole.gguf", damaged(whole.content, [mutation], cut), whole.size)
    check_gguf(folder / "whole.gguf", whole.content)


def test_undamaged_gguf_headers_pass(folder: Path, gguf_headers: tuple[Header, Header]) -> None:
    """Otherwise the tests above would test nothing."""
    whole, short = gguf_headers
    assert abs(len(short.content) - SHORT_HEADER_BYTES) < 1000
    for header in (whole, short):
        write(folder / "undamaged.gguf", header.content, header.size)
        with open_gguf(folder / "undamaged.gguf") as file:
            assert len(file.tensors) == 272
        check_gguf(folder / "undamaged.gguf", header.content)


@pytest.mark.parametrize("count", EXTREMES)
def test_lying_counts_cost_nothing(count: int, folder: Path, gguf_headers: tuple[Header, Header]) -> None:
    """Each count and length field of the header, one after the other, set to an extreme value."""
    short = gguf_headers[1].content
    path = folder / "counts.gguf"
    keys = (b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type", b"tokenizer.ggml.merges")
    fields = [8, 16, 24, *(short.index(key) + len(key) + 8 for key in keys)]  # tensors, keys, first key, arrays
    for name in (b"token_embd.weight", b"blk.0.attn_q.weight"):
        start = short.index(name)
        fields += [start - 8, start + len(name) + 4, start + len(name) + 12]
    for position in fields:
        path.write_bytes(short[:position] + count.to_bytes(8, "little") + short[position + 8 :])
        problem, peak = outcome(lambda: open_gguf(path).close())
        assert problem is not None or count == 0  # no tensors, no keys, an empty array may be valid
        assert peak < 1 << 20


# SafeTensors


@pytest.fixture(scope="module")
def safetensors_header(smollm2_checkpoint: Path) -> Header:
    """The header of the model's SafeTensors file, its length field included."""
    path = smollm2_checkpoint / "model.safetensors"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        return Header(file.read(8 + length), path.stat().st_size)


TOKENS = [
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9" * 5000,
    b"NaN",
    b"null",
    b"true",
    b"0",
]
TOKENS += [
    b"1.0",
    b'"a"',
    b'"\\ud800"',
    b"{}",
    b"[]",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"\xff",
    b"\x00",
    b'"dtype":',
    b",",
]
TOKENS += [b'"F32"', b'"F4"', b'"__metadata__":', b" ", b"\xef\xbb\xbf"]
JSON_TOKEN = re.compile(rb'"[^"]*"|\d+|[\[\]{}:,]')


def token_replaced(number: int, new: bytes) -> Mutation:
    def replace(content: bytes) -> bytes:
        found = list(JSON_TOKEN.finditer(content, 8))
        if not found:
            return content
        token = found[number % len(found)]
        return content[: token.start()] + new + content[token.end() :]

    return replace


def with_true_length(content: bytes) -> bytes:
    return max(0, len(content) - 8).to_bytes(8, "little") + content[8:]


# A refusal of a file that the safetensors package accepts must have one of these reasons.
STRICTER = ("start with '{'", "overflows 64 bits")


def package_reads(path: Path) -> dict[str, tuple[str, list[int]]] | None:
    """Names, dtypes and shapes by the safetensors package; None when it refuses the file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            return {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    except (safetensors.SafetensorError, OSError, ValueError):
        return None


def check_safetensors(path: Path, header: bytes) -> None:
    problem, peak = outcome(lambda: read_header(path))
    assert peak < (1 << 20) + 40 * len(header)
    theirs = package_reads(path)
    if problem is None:
        tensors = read_header(path).tensors
        assert {name: (info.dtype, list(info.shape)) for name, info in tensors.items()} == theirs
    else:
        assert str(path) in problem
        assert theirs is None or any(reason in problem for reason in STRICTER), problem


@settings(max_examples=400)
@given(
    mutations=st.lists(
        binary(28_000, first=8) | st.builds(token_replaced, st.integers(0, 10_000), st.sampled_from(TOKENS)),
        min_size=1,
        max_size=2,
    ),
    cut=st.none() | st.none() | st.none() | st.integers(0, 28_000),
    true_length=st.sampled_from([True, True, True, False]),
)
def test_damaged_safetensors_header(
    mutations: list[Mutation],
    cut: int | None,
    true_length: bool,
    folder: Path,
    safetensors_header: Header,
) -> None:
    content, size = safetensors_header.content, safetensors_header.size
    header = damaged(content, mutations, cut)
    if true_length:
        header = with_true_length(header)
    path = folder / "model.safetensors"
    write(path, header, size + len(header) - len(content))
    check_safetensors(path, content)


@pytest.mark.parametrize("length", EXTREMES)
def test_lying_safetensors_length_costs_nothing(length: int, folder: Path, safetensors_header: Header) -> None:
    content, size = safetensors_header.content, safetensors_header.size
    path = folder / "length.safetensors"
    write(path, length.to_bytes(8, "little") + content[8:], size)
    problem, peak = outcome(lambda: read_header(path))
    assert problem is not None
    assert peak < (1 << 20) + (8 * length if length < size else 0)


def test_undamaged_safetensors_header_passes(folder: Path, safetensors_header: Header) -> None:
    content, size = safetensors_header.content, safetensors_header.size
    write(folder / "undamaged.safetensors", with_true_length(content), size)
    assert len(read_header(folder / "undamaged.safetensors").tensors) == 272
    check_safetensors(folder / "undamaged.safetensors", content)
    assert abs(len(content) - 28_000) < 3000
