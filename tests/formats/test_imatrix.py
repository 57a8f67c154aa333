"""Importance-matrix files: the real tool's in both forms, and every way in which a file can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import ARRAY, F32, STRING, U32, array, gguf, pair, tensor, text
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import Mutation, binary
from numpy.typing import NDArray

from llmkit.convert.importance import read_importance
from llmkit.errors import FormatError, LlmkitError
from llmkit.formats.imatrix import ColumnSums, ImatrixFile, read_imatrix, read_products, write_imatrix

# llama-imatrix -m moe.gguf -f moe.txt -c 64 -b 64 -t 1 --process-output (llama.cpp 0.5.0, commit 0c1e570), once with
# --output-format dat; the model is tests/runtimes/tiny_moe.py, the text that of tests/runtimes/test_importance.py.
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
IN_GGUF = GOLDEN / "imatrix-gguf.bin"
IN_BINARY = GOLDEN / "imatrix-dat.bin"
EXPERTS = ("blk.0.ffn_down_exps.weight", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight")


def test_the_tools_gguf_form() -> None:
    file = read_imatrix(IN_GGUF)
    assert (file.datasets, file.n_chunks, file.chunk_size, len(file.entries)) == (("moe.txt",), 4, 64, 9)
    down = file.entries["blk.0.ffn_down_exps.weight"]
    assert down.sums.shape == (4, 64)
    assert down.counts.tolist() == [230, 153, 0, 129]
    assert file.entries["output.weight"].counts.tolist() == [256]
    importance = read_importance(IN_GGUF)
    assert importance.without_data == dict.fromkeys(EXPERTS, (2,))
    assert (importance.entries["blk.0.ffn_down_exps.weight"][2] == 1).all()


def test_the_tools_older_form_says_the_same() -> None:
    importance, older = read_importance(IN_GGUF), read_importance(IN_BINARY)
    assert (older.datasets, older.n_chunks, older.chunk_size) == (("moe.txt",), 4, 0)
    assert list(older.entries) == list(importance.entries)
    for name, entry in importance.entries.items():
        # Stored as mean times calls, here 4, so dividing gives the mean's own bits.
        assert older.entries[name].tobytes() == entry.tobytes()
    shape = (4, 64, 32)
    found = older.of("blk.0.ffn_gate_exps.weight", shape)
    assert found is not None
    assert found.tobytes() == importance.entries["blk.0.ffn_gate_exps.weight"].tobytes()


def test_written_as_the_tool_writes(tmp_path: Path) -> None:
    file = read_imatrix(IN_GGUF)
    shuffled = ImatrixFile(file.path, file.datasets, 4, 64, dict(reversed(file.entries.items())))
    write_imatrix(tmp_path / "copy.gguf", shuffled, overwrite=False)
    assert (tmp_path / "copy.gguf").read_bytes() == IN_GGUF.read_bytes()


def test_products_beside_the_sums(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    sums = ColumnSums(np.arange(1, 6, dtype=np.float32)[None], np.array([4]))
    experts = ColumnSums(np.ones((2, 5), np.float32), np.array([4, 4]))
    entries = {"a": sums, "b": sums, "c": ColumnSums(2 * sums.sums, sums.counts), "e": experts}
    products = np.random.default_rng(0).random((2, 3, 3), np.float32)
    write_imatrix(path, ImatrixFile(path, ("t",), 1, 4, entries), {"b": products}, overwrite=False)
    file = read_imatrix(path)
    assert read_products(file.products["b"]).tobytes() == products.tobytes()
    importance = read_importance(path)
    assert set(importance.products) == {"a", "b"}  # a has the same sums, so it multiplies the same
    assert importance.products["a"]().tobytes() == (products / np.float32(4)).tobytes()
    for name, wrong, message in (
        ("a", products[:1], r"'a.in_products'.*F32 \(.*3, 3\); expected float32 .* the 5 columns"),
        ("e", products, "columns of one matrix"),
        ("z", products, "has no '.in_sum2' beside it"),
    ):
        write_imatrix(path, ImatrixFile(path, ("t",), 1, 4, entries), {name: wrong}, overwrite=True)
        with pytest.raises(FormatError, match=message):
            read_imatrix(path)


# The GGUF form, byte by byte

KEYS = (
    pair("general.type", STRING, text("imatrix")),
    pair("imatrix.datasets", ARRAY, array(STRING, 1, text("a.txt"))),
    pair("imatrix.chunk_count", U32, struct.pack("<I", 2)),
    pair("imatrix.chunk_size", U32, struct.pack("<I", 8)),
)


def in_gguf(sums: Sequence[float], counts: Sequence[float], *, keys: Sequence[bytes] = KEYS, name: str = "w") -> bytes:
    data = struct.pack(f"<{len(sums)}f", *sums)
    data += bytes(-len(data) % 32)
    tensors = [
        tensor(f"{name}.in_sum2", [len(sums)], 0, 0),
        tensor(f"{name}.counts", [len(counts)], 0, len(data)),
    ]
    data += struct.pack(f"<{len(counts)}f", *counts)
    return gguf(keys, tensors, data + bytes(-len(data) % 32))


def problem(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(FormatError) as error:
        read_imatrix(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m"


def test_counts_are_rounded_as_in_c(path: Path) -> None:
    path.write_bytes(in_gguf([2, 3, 6, 5], [0.5, 1.5, 0.49, 2.0]))
    assert read_imatrix(path).entries["w"].counts.tolist() == [1, 2, 0, 2]
    assert read_importance(path).entries["w"].tolist() == [[2], [1.5], [1], [2.5]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0])
def test_sums_that_are_no_sums_of_squares(path: Path, value: float) -> None:
    assert f"'w': expert 1, column 1: a sum of squares of {value}" in problem(path, in_gguf([1, 1, 1, value], [1, 1]))


@pytest.mark.parametrize("count", [np.nan, np.inf, -1.0, 1e30])
def test_counts_that_are_no_counts(path: Path, count: float) -> None:
    assert "'w': a count of" in problem(path, in_gguf([1, 1], [1, count]))


@pytest.mark.parametrize(("n_sums", "n_counts"), [(3, 2), (0, 1), (2, 0), (1, 2)])
def test_sums_and_counts_that_do_not_go_together(path: Path, n_sums: int, n_counts: int) -> None:
    found = problem(path, in_gguf([1.0] * n_sums, [1.0] * n_counts))
    assert f"'w': {n_sums} sums for {n_counts} counts" in found


@pytest.mark.parametrize(("there", "lacking"), [("in_sum2", "counts"), ("counts", "in_sum2")])
def test_half_an_entry(path: Path, there: str, lacking: str) -> None:
    content = gguf(KEYS, [tensor(f"w.{there}", [1], 0, 0)], bytes(32))
    assert f"has 'w.{there}', but not 'w.{lacking}'" in problem(path, content)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_missing_metadata(path: Path, lost: int) -> None:
    keys = [key for number, key in enumerate(KEYS) if number != lost]
    assert "metadata imatrix." in problem(path, in_gguf([1], [1], keys=keys))


@pytest.mark.parametrize(
    ("number", "key"),
    [
        (1, pair("imatrix.datasets", STRING, text("a.txt"))),
        (2, pair("imatrix.chunk_count", F32, struct.pack("<f", 2))),
        (3, pair("imatrix.chunk_size", STRING, text("8"))),
    ],
)
def test_metadata_of_another_type(path: Path, number: int, key: bytes) -> None:
    keys = [*KEYS[:number], key, *KEYS[number + 1 :]]
    assert "must be" in problem(path, in_gguf([1], [1], keys=keys))


def test_tensors_of_another_type(path: Path) -> None:
    tensors = [tensor("w.in_sum2", [8], 1, 0), tensor("w.counts", [1], 0, 32)]
    assert "in_sum2 has type F16, expected F32" in problem(path, gguf(KEYS, tensors, bytes(64)))


def test_a_nameless_entry(path: Path) -> None:
    assert "belongs to no tensor" in problem(path, in_gguf([1], [1], name=""))


def test_a_model_is_no_importance_matrix(smollm2_gguf: Path) -> None:
    with pytest.raises(FormatError, match=r"not an importance matrix: a GGUF file \(llama\)"):
        read_imatrix(smollm2_gguf)


def test_the_texts_names_may_hold_any_bytes(path: Path) -> None:
    keys = [KEYS[0], pair("imatrix.datasets", ARRAY, array(STRING, 1, text(b"\xff.txt"))), *KEYS[2:]]
    path.write_bytes(in_gguf([1], [1], keys=keys))
    assert read_imatrix(path).datasets == ("\ufffd.txt",)


# The older form


def entry(
    name: bytes, calls: int, values: Sequence[float], *, n: int | None = None, length: int | None = None
) -> bytes:
    head = struct.pack("<i", len(name) if length is None else length) + name
    return head + struct.pack("<ii", calls, len(values) if n is None else n) + struct.pack(f"<{len(values)}f", *values)


def in_binary(*entries: bytes, end: bytes = b"", n: int | None = None) -> bytes:
    return struct.pack("<i", len(entries) if n is None else n) + b"".join(entries) + end


W = entry(b"w", 3, [1.0, 7.0])


@pytest.mark.parametrize(
    ("end", "chunks", "datasets"),
    [
        (b"", 0, ()),
        (struct.pack("<i", 5), 5, ()),
        (struct.pack("<ii", 5, 0), 5, ()),
        (struct.pack("<ii", 5, 2) + b"ab", 5, ("ab",)),
    ],
)
def test_what_follows_the_entries_is_optional(path: Path, end: bytes, chunks: int, datasets: tuple[str, ...]) -> None:
    path.write_bytes(in_binary(W, end=end))
    importance = read_importance(path)
    assert (importance.n_chunks, importance.datasets) == (chunks, datasets)
    assert importance.entries["w"].tolist() == [[np.float32(1) / np.float32(3), np.float32(7) / np.float32(3)]]


def test_without_calls_the_values_are_the_means(path: Path) -> None:
    path.write_bytes(in_binary(entry(b"w", 0, [2.0, 0.5])))
    importance = read_importance(path)
    assert importance.entries["w"].tolist() == [[2.0, 0.5]]
    assert importance.without_data == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not an importance matrix"),
        (b"abc", "not an importance matrix"),
        (b"this is a text, and no matrix of any kind", "not an importance matrix"),
        (in_binary(W, n=0), "not an importance matrix"),
        (in_binary(W, n=-1), "not an importance matrix"),
        (in_binary(W, n=2), "not an importance matrix"),
        (in_binary(entry(b"w" * 20, 1, [1.0]), n=2), "the length of the name of entry 1 takes 4 bytes, 0 are left"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (in_binary(entry(b"", 1, [1.0, 1.0])), "length of the name of entry 0 is 0"),
        (in_binary(entry(b"w", 1, [1.0, 1.0], length=-5)), "length of the name of entry 0 is -5"),
        (in_binary(entry(b"w" * 64, 1, [1.0])), "tensor names take at most 63 bytes"),
        (in_binary(entry(b"w\xff", 1, [1.0])), "not UTF-8 text"),
        (in_binary(entry(b"w\0", 1, [1.0])), "not UTF-8 text"),
        (in_binary(entry(b"w", -1, [1.0])), "number of calls of 'w' is -1"),
        (in_binary(entry(b"w", 1, [1.0], n=0)), "number of values of 'w' is 0"),
        (in_binary(entry(b"w", 1, [1.0], n=(1 << 31) - 1)), "the values of 'w' takes 8,589,934,588 bytes, 4 are left"),
        (in_binary(entry(b"w", 1, [1.0, np.nan])), "'w': column 1: a sum of squares of nan"),
        (in_binary(entry(b"w", 1, [-2.0])), "'w': column 0: a sum of squares of -2.0"),
        (in_binary(W, W), "'w': occurs twice"),
        (in_binary(W, end=b"\0\0"), "the number of chunks takes 4 bytes, 2 are left"),
        (in_binary(W, end=struct.pack("<ii", 1, 9) + b"ab"), "the text's name takes 9 bytes, 2 are left"),
        (in_binary(W, end=struct.pack("<ii", 1, 2) + b"abc"), "1 bytes follow after the end"),
    ],
)
def test_damage_to_the_older_form(path: Path, content: bytes, expected: str) -> None:
    assert expected in problem(path, content)


def test_a_missing_file(path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        read_imatrix(path)


# Both, damaged at random


# Behind the last value only padding follows in one form, and what is optional in the other.
@pytest.mark.parametrize(("source", "n_bytes_behind"), [(IN_GGUF, 28), (IN_BINARY, 15)], ids=["gguf", "binary"])
def test_every_beginning_of_a_file(path: Path, source: Path, n_bytes_behind: int) -> None:
    content = source.read_bytes()
    for length in range(0, len(content) - n_bytes_behind, 37):
        problem(path, content[:length])


@pytest.mark.parametrize("source", [IN_GGUF, IN_BINARY], ids=["gguf", "binary"])
@given(data=st.data())
@settings(max_examples=150)
def test_damage_gives_a_message_or_sound_values(tmp_path: Path, source: Path, data: st.DataObject) -> None:
    content = source.read_bytes()
    mutations: list[Mutation] = data.draw(st.lists(binary(len(content)), min_size=1, max_size=3))
    for mutation in mutations:
        content = mutation(content)
    path = tmp_path / "damaged"
    path.write_bytes(content)
    entries: Mapping[str, NDArray[np.float32]] = {}
    with suppress(LlmkitError):
        entries = read_importance(path).entries
    for values in entries.values():
        assert values.dtype == np.float32
        assert values.ndim == 2
        assert values.size
        assert np.isfinite(values).all()
        assert (values >= 0).all()


def test_names_too_long_for_gguf_are_refused(tmp_path: Path) -> None:
    entries = {"n" * 60: ColumnSums(np.ones((1, 2), np.float32), np.ones(1, np.int64))}
    with pytest.raises(LlmkitError, match="takes 68 bytes; ggml allows 63"):
        write_imatrix(tmp_path / "x", ImatrixFile(tmp_path / "x", (), 1, 512, entries), overwrite=False)
    assert list(tmp_path.iterdir()) == []
