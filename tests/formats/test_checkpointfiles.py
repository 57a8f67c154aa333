"""What names of files say: the same for a folder that is opened and for a repository that is listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.convert.checkpoint import open_checkpoint
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.checkpointadvice import why_no_checkpoint
from llmkit.formats.checkpointfiles import cached_repo, contents, part_of_set, repo_of_cache_folder

CONFIG = "config.json"
PARTS = [f"m-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]

# names, whether the weights are of another kind, what folder and repository are both told
CASES: dict[str, tuple[list[str], bool, str]] = {
    "PyTorch files and no index": (
        [CONFIG, "a.pt", "b.pt"], True, "2 PyTorch files (a.pt, b.pt) but neither pytorch_model.bin nor an index"),
    "PyTorch's without a config": (["pytorch_model.bin"], False, "has PyTorch weights"),
    "Meta's layout beside a config": ([CONFIG, "consolidated.00.pth"], True, "1 PyTorch files (consolidated.00.pth)"),
    "a trainer's leftovers only": (
        [CONFIG, "training_args.bin", "optimizer.pt", "rng_state.pth"], False, "config.json but no weights"),
    "OpenVINO": ([CONFIG, "openvino_model.bin"], False, "config.json but no weights"),
    "Meta's layout": (["consolidated.00.pth", "params.json"], True, "Meta's or Mistral's own layout"),
    "Mistral's layout": (["consolidated.safetensors", "params.json"], True, "Meta's or Mistral's own layout"),
    "adapter": ([CONFIG, "adapter_config.json", "adapters.safetensors"], True, "LoRA adapter"),
    "other files and no index": ([CONFIG, "a.safetensors", "b.safetensors"], True, "2 .safetensors files (a.safe"),
    "an incomplete set": ([CONFIG, *PARTS[:2]], False, f"2 of 3 shards and no model.safetensors.index.json; missing: "
        f"{PARTS[2]}"),
    "one of an incomplete set": ([CONFIG, PARTS[1]], False, f"1 of 3 shards and no model.safetensors.index.json; "
        f"missing: {PARTS[0]}, {PARTS[2]}"),
    "numbered from 0": (
        [CONFIG, "m-00000-of-00001.safetensors", "m-00001-of-00001.safetensors"], False, "2 of 1 shards"),
    "GGUF": (["x.gguf"], True, "holds GGUF files (x.gguf)"),
    "ONNX": ([CONFIG, "model.onnx"], True, "holds model.onnx"),
    "config": ([CONFIG], False, "config.json but no weights"),
    "nothing": (["README.md"], False, "holds no model"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_folder_and_repository_are_told_the_same(name: str, tmp_path: Path) -> None:
    names, is_other_kind, expected = CASES[name]
    found = contents(names)
    assert not found.is_checkpoint
    told = why_no_checkpoint(found, "org/name")
    assert expected in told.reason
    assert told.is_other_kind == is_other_kind
    for file in names:
        (tmp_path / file).write_text("{}")
    with pytest.raises(LlmkitError) as caught:
        open_checkpoint(tmp_path)
    assert isinstance(caught.value, UnsupportedError if is_other_kind else FormatError)
    assert expected in str(caught.value)


PYTORCH = "pytorch_model.bin"
PYTORCH_SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


@pytest.mark.parametrize(
    ("names", "index", "weights"),
    [
        ([PYTORCH], None, [PYTORCH]),
        ([PYTORCH, "optimizer.pt", "training_args.bin", "adapter_model.bin", "consolidated.00.pth"], None, [PYTORCH]),
        ([PYTORCH, "other.bin"], None, [PYTORCH]),
        (["weights.pth"], None, ["weights.pth"]),
        ([*PYTORCH_SHARDS, f"{PYTORCH}.index.json"], f"{PYTORCH}.index.json", PYTORCH_SHARDS),
        ([PYTORCH, "model.safetensors"], None, ["model.safetensors"]),
        ([*PYTORCH_SHARDS, f"{PYTORCH}.index.json", *PARTS], None, PARTS),
    ],
)
def test_pytorch_files_serve_where_there_are_no_others(names: list[str], index: str | None, weights: list[str]) -> None:
    found = contents([CONFIG, *names])
    assert found.is_checkpoint
    assert (found.index, list(found.weights)) == (index, weights)


def test_advice_for_repositories_names_the_repository() -> None:
    gguf = why_no_checkpoint(contents(["q/a b.gguf"]), "org/name@v1").reason
    assert "`hf download org/name 'q/a b.gguf' --revision v1 --local-dir .`" in gguf


def test_parts() -> None:
    part = part_of_set("tiny-00002-of-00003.GGUF")
    assert part is not None
    assert (part.stem, part.number, part.count) == ("tiny", 2, 3)
    assert part.sibling(1) == "tiny-00001-of-00003.GGUF"
    for name in ("tiny.gguf", "tiny-2-of-3.gguf", "tiny-00002-of-00003.bin", "tiny-0000٢-of-00003.gguf"):
        assert part_of_set(name) is None


def test_cache_folders(tmp_path: Path) -> None:
    assert repo_of_cache_folder("models--org--name") == "org/name"
    assert repo_of_cache_folder("models--gpt2") == "gpt2"
    assert repo_of_cache_folder("datasets--org--name") is None
    assert cached_repo(tmp_path / "models--org--name" / "snapshots" / "0123") == "org/name"
    assert cached_repo(tmp_path / "models--org--name" / "other" / "0123") is None


def test_many_shards() -> None:
    names = [f"model-{n:05d}-of-20000.safetensors" for n in range(1, 20001)]
    assert contents([CONFIG, *names]).weights == tuple(names)
    missing = why_no_checkpoint(contents([CONFIG, *names[1:]]), "org/name").reason
    assert missing.endswith(f"19,999 of 20,000 shards and no model.safetensors.index.json; missing: {names[0]}.")
