"""GGUF models as sources: split ones are found whole from any part, or what is wrong with them is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import llmkit
from llmkit.convert.gguf_source import base_name, open_source
from llmkit.errors import FormatError
from llmkit.formats.gguf import i32, open_gguf, string, u16
from llmkit.types import TensorType
from tests.tinygguf import TinyGGUF, write_ones


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model in several files."""
    source = TinyGGUF(n_layers=2).write(tmp_path / "whole.gguf")
    folder = tmp_path / "parts"
    folder.mkdir()
    return list(llmkit.quantize(source, "bf16", output=folder / "m.gguf", split_size="500KB").paths)


def test_parts_are_those_of_gguf_split(parts: list[Path]) -> None:
    """Names and keys are; that llama.cpp reads the files is tested in tests/test_quantize_parity.py."""
    n = len(parts)
    assert [path.name for path in parts] == [f"m-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)]
    n_tensors = len(TinyGGUF(n_layers=2).weights())
    for number, path in enumerate(parts):
        with open_gguf(path) as file:
            split = list(file.metadata)[-3:]
            assert split == ["split.no", "split.tensors.count", "split.count"]
            assert [file.metadata[key] for key in split] == [u16(number), i32(n_tensors), u16(n)]
            assert ("general.architecture" in file.metadata) == (number == 0)
            assert len(file.metadata) == 3 or number == 0
            n_bytes = sum(tensor.nbytes for tensor in file.tensors.values())
            assert n_bytes <= 500_000 or len(file.tensors) == 1


def test_any_part_leads_to_the_whole_model(parts: list[Path], tmp_path: Path) -> None:
    whole = open_source(tmp_path / "whole.gguf")
    for part in parts:
        source = open_source(part)
        assert source.path == parts[0]
        assert not [key for key in source.metadata if key.startswith("split.")]
        assert sorted((t.name, t.shape, t.dtype) for t in source.tensors) == sorted(
            (t.name, t.shape, t.dtype) for t in whole.tensors
        )


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(FormatError, match=rf"{parts[0].name}: is one of {len(parts)} parts .* 1 of .*{parts[1].name}"):
        open_source(parts[0])


def test_parts_that_do_not_belong_together(parts: list[Path], tmp_path: Path) -> None:
    first, second = (path.read_bytes() for path in parts[:2])
    parts[1].write_bytes(first)
    with pytest.raises(FormatError, match=rf"{parts[1].name}: says it is part 1 of {len(parts)} .*expected part 2 of"):
        open_source(parts[0])
    shutil.copy(tmp_path / "whole.gguf", parts[1])
    with pytest.raises(FormatError, match=rf"{parts[1].name}: has no split.count; expected part 2 of {len(parts)}"):
        open_source(parts[0])
    shutil.copy(tmp_path / "whole.gguf", parts[0])
    with pytest.raises(FormatError, match=rf"{parts[0].name}: is named as part 1 of {len(parts)}, but has no split"):
        open_source(parts[0])
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(second)
    with pytest.raises(FormatError, match=rf"renamed.gguf: says it is part 2 of {len(parts)} .*their own names"):
        open_source(renamed)


def test_parts_whose_tensors_are_not_those_counted(tmp_path: Path) -> None:
    def part(number: int, names: list[str], n_tensors: int) -> None:
        split = {"split.no": u16(number), "split.tensors.count": i32(n_tensors), "split.count": u16(2)}
        metadata = {"general.architecture": string("llama")} | split if number == 0 else split
        path = tmp_path / f"m-{number + 1:05d}-of-00002.gguf"
        write_ones(path, metadata, dict.fromkeys(names, (TensorType.F32, (2, 256))))

    part(0, ["a.weight"], 3)
    part(1, ["b.weight"], 3)
    with pytest.raises(FormatError, match=r"split.tensors.count says 3 tensors, the parts have 2"):
        open_source(tmp_path / "m-00001-of-00002.gguf")
    part(0, ["a.weight"], 2)
    part(1, ["a.weight"], 2)
    with pytest.raises(
        FormatError, match=r"m-00002-of-00002.gguf: tensor 'a.weight': is in .*m-00001-of-00002.gguf too"
    ):
        open_source(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-3-8B-BF16.gguf", "Llama-3-8B"),
        ("llama.f16.gguf", "llama"),
        ("m-Q4_K_M.gguf", "m"),
        ("m-q4_k.gguf", "m"),
        ("m-iq2_xs-00002-of-00003.gguf", "m"),
        ("m_mxfp4_moe.gguf", "m"),
        ("plain.gguf", "plain"),
        ("BF16.gguf", "BF16"),
        ("mf16.gguf", "mf16"),
    ],
)
def test_a_models_name_without_its_type(name: str, expected: str) -> None:
    assert base_name(Path(name)) == expected
