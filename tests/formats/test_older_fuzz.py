"""Older formats: real files, damaged: only LlmkitError may come out, and memory stays in proportion to the file."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import EXTREMES, Mutation, binary
from olderfiles import FILES, OLDER

from llmkit.errors import LlmkitError
from llmkit.formats.older import find_older, read_older, tables

NAMES = sorted(FILES)
LONGEST = max((OLDER / name).stat().st_size for name in NAMES)


def read_all(path: Path, content: bytes) -> None:
    """Read the file, and every tensor that it is said to have."""
    path.write_bytes(content)
    problem = str(path.parent)
    tracemalloc.start()
    try:
        found = find_older(path)
        assert found is not None
        file = read_older(*found)
        for tensor in file.tensors:
            if tensor.name in file.values:
                count = min(tensor.nbytes, 1 << 16)
                assert file.values[tensor.name].read(0, count).size == count
            else:
                assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= tensor.path.stat().st_size
    except LlmkitError as error:
        problem = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(path.parent) in problem
    assert peak < (4 << 20) + 100 * len(content), problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in NAMES:
        found = find_older(OLDER / name)
        assert found is not None
        read_older(*found)  # what is imported for it does not count
    folder = tmp_path_factory.mktemp("older")
    for path in OLDER.glob("*.data-*"):
        shutil.copy(path, folder / path.name)
    return folder


@pytest.fixture(autouse=True)
def _checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever means harm gets them right."""
    monkeypatch.setattr(tables, "_has_checksum", lambda data, stored: True)


@settings(max_examples=400)
@given(
    name=st.sampled_from(NAMES),
    mutations=st.lists(binary(LONGEST), min_size=1, max_size=3),
    cut=st.none() | st.none() | st.none() | st.integers(0, LONGEST),
)
def test_damaged_files(name: str, mutations: list[Mutation], cut: int | None, folder: Path) -> None:
    content = (OLDER / name).read_bytes()
    for mutation in mutations:
        content = mutation(content)
    read_all(folder / name, content[:cut])


@settings(max_examples=150)
@given(
    name=st.sampled_from(["program.json", "legacy.pdmodel"]), mutations=st.lists(binary(4000), min_size=1, max_size=2)
)
def test_damaged_programs(name: str, mutations: list[Mutation], folder: Path) -> None:
    content = (OLDER / name).read_bytes()
    for mutation in mutations:
        content = mutation(content)
    program = folder / "named" / name
    program.parent.mkdir(exist_ok=True)
    program.write_bytes(content)
    parameters = program.with_suffix(".pdiparams")
    read_all(parameters, (OLDER / parameters.name).read_bytes())


@pytest.mark.parametrize(
    "name", ["dense.params", "program.pdiparams", "layers.caffemodel", "state4.pdparams", "tf2.index"]
)
@pytest.mark.parametrize("count", EXTREMES)
def test_lying_counts_cost_nothing(name: str, count: int, folder: Path) -> None:
    """A number of extreme value in places of the first 200 bytes."""
    content = (OLDER / name).read_bytes()
    for position in range(0, 200, 7):
        read_all(folder / name, content[:position] + count.to_bytes(8, "little") + content[position + 8 :])


@pytest.mark.parametrize("name", NAMES)
def test_undamaged_files_pass(name: str) -> None:
    """Otherwise the tests above would test nothing."""
    found = find_older(OLDER / name)
    assert found is not None
    assert read_older(*found).tensors
