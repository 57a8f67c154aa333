"""Opening checkpoint folders: what is found, and one message per kind of broken folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from llmkit.convert.checkpoint import open_checkpoint
from llmkit.errors import FormatError, LlmkitError, ModelNotFoundError, UnsupportedError

CONFIG = {"model_type": "llama", "torch_dtype": "bfloat16"}
SHARDS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")


def tensor(value: int) -> np.ndarray:
    return np.full((2, 3), value, dtype=np.float32)


def save(path: Path, *names: str) -> None:
    safetensors.numpy.save_file({name: tensor(number) for number, name in enumerate(names)}, path)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def single(folder: Path, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    save(folder / name, "a", "b")
    return folder


def sharded(folder: Path) -> Path:
    """Three shards with two tensors each, and the index that transformers writes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    weight_map = {}
    for number, shard in enumerate(SHARDS):
        names = [f"t{number}.x", f"t{number}.y"]
        save(folder / shard, *names)
        weight_map |= dict.fromkeys(names, shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 144}, "weight_map": weight_map})
    return folder


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    write_json(index, content)
    return folder


def test_single_file(tmp_path: Path) -> None:
    folder = single(tmp_path)
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.folder == folder
    assert checkpoint.config == CONFIG
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    assert checkpoint.files == (folder / "model.safetensors",)
    assert sorted(checkpoint.tensors) == ["a", "b"]
    assert (checkpoint.n_params, checkpoint.nbytes) == (12, 48)
    content = (folder / "model.safetensors").read_bytes()
    info = checkpoint.tensors["b"]
    assert content[info.offset : info.offset + info.nbytes] == tensor(1).tobytes()


def test_the_packaged_model(smollm2_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(smollm2_checkpoint))
    assert checkpoint.n_params == 134_515_008
    assert checkpoint.nbytes == 2 * checkpoint.n_params
    assert checkpoint.config["vocab_size"] == 49152
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (49152, 576)


def test_shards_with_an_index(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path))
    assert checkpoint.files == tuple(tmp_path / shard for shard in SHARDS)
    assert list(checkpoint.tensors) == ["t0.x", "t0.y", "t1.x", "t1.y", "t2.x", "t2.y"]
    assert checkpoint.tensors["t1.y"].path == tmp_path / SHARDS[1]
    assert checkpoint.generation_config == {}


def test_shards_without_an_index(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model.safetensors.index.json").unlink()
    assert open_checkpoint(tmp_path).files == tuple(tmp_path / shard for shard in SHARDS)


def test_one_file_of_another_name(tmp_path: Path) -> None:
    single(tmp_path, "weights.safetensors")
    assert open_checkpoint(tmp_path).files == (tmp_path / "weights.safetensors",)


def test_a_lone_first_of_one_shard(tmp_path: Path) -> None:
    single(tmp_path, "model-00001-of-00001.safetensors")
    assert open_checkpoint(tmp_path).n_params == 12


def test_consolidated_weights_are_left_aside(tmp_path: Path) -> None:
    """Mistral repositories carry the same weights twice."""
    single(tmp_path, "weights.safetensors")
    save(tmp_path / "consolidated.safetensors", "layers.0.wq")
    assert sorted(open_checkpoint(tmp_path).tensors) == ["a", "b"]
    sharded(tmp_path / "more")
    save(tmp_path / "more" / "consolidated.safetensors", "layers.0.wq")
    assert len(open_checkpoint(tmp_path / "more").tensors) == 6


def test_the_single_file_comes_before_the_index(tmp_path: Path) -> None:
    """As in transformers."""
    save(sharded(tmp_path) / "model.safetensors", "a", "b")
    assert sorted(open_checkpoint(tmp_path).tensors) == ["a", "b"]


def test_pickles_beside_safetensors_do_not_matter(tmp_path: Path) -> None:
    (single(tmp_path) / "pytorch_model.bin").write_bytes(b"\x80")
    assert open_checkpoint(tmp_path).n_params == 12


def test_infinity_in_config(tmp_path: Path) -> None:
    """Python writes it, and some published configs hold it."""
    (single(tmp_path) / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert open_checkpoint(tmp_path).config["time_step_limit"][1] == float("inf")


def hub_cache(root: Path, source: Path) -> Path:
    """The folder layout of the Hugging Face cache: links from a snapshot into blobs."""
    repo = root / "models--org--name"
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copy(path, repo / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


def test_hugging_face_cache(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, sharded(tmp_path / "source"))
    assert len(open_checkpoint(snapshot).tensors) == 6
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    checkpoint = open_checkpoint(link)
    assert checkpoint.files[0] == link / SHARDS[0]


def test_missing_shard_of_the_hugging_face_cache(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, sharded(tmp_path / "source"))
    (snapshot / SHARDS[1]).unlink()
    with pytest.raises(FormatError) as caught:
        open_checkpoint(snapshot)
    assert f"hf download org/name {SHARDS[1]} --revision 0123abcd" in str(caught.value)


def test_links_inside_the_folder(tmp_path: Path) -> None:
    single(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "data")
    (tmp_path / "model.safetensors").symlink_to("data")
    assert open_checkpoint(tmp_path).n_params == 12


def test_shards_in_a_folder_below(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / SHARDS[0]).rename(tmp_path / "weights" / SHARDS[0])
    edit_index(tmp_path, lambda weight_map: weight_map.update(dict.fromkeys(["t0.x", "t0.y"], f"weights/{SHARDS[0]}")))
    assert len(open_checkpoint(tmp_path).tensors) == 6


def set_shard(name: str) -> Callable[[Path], object]:
    return lambda folder: edit_index(sharded(folder), lambda weight_map: weight_map.update({"t0.x": name}))


def without(*names: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        sharded(folder)
        for name in names:
            (folder / name).unlink()

    return make


def outside_link(folder: Path) -> None:
    sharded(folder)
    save(folder.parent / "elsewhere.safetensors", "t1.x", "t1.y")
    (folder / SHARDS[1]).unlink()
    (folder / SHARDS[1]).symlink_to(folder.parent / "elsewhere.safetensors")


def linked_config(folder: Path) -> None:
    single(folder)
    write_json(folder.parent / "secret.json", {})
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../secret.json")


def cache_link_beyond_blobs(folder: Path) -> None:
    """Looks like the hub's cache, but a link leads to a file beside the blobs."""
    source = sharded(folder.parent / "source")
    shutil.rmtree(folder)
    snapshot = hub_cache(folder.parent, source)
    (snapshot / SHARDS[0]).unlink()
    (snapshot / SHARDS[0]).symlink_to(f"../../../source/{SHARDS[0]}")
    folder.symlink_to(snapshot)


def index_text(text: str) -> Callable[[Path], object]:
    return lambda folder: (sharded(folder) / "model.safetensors.index.json").write_text(text)


def config_text(text: str | bytes) -> Callable[[Path], object]:
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: (single(folder) / "config.json").write_bytes(content)


def config_with(*names: str, config: bool = True) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        if config:
            write_json(folder / "config.json", CONFIG)
        for name in names:
            (folder / name).write_bytes(b"?")

    return make


# name -> (how to make the folder, the error, what its message must say)
CASES: dict[str, tuple[Callable[[Path], object], type[LlmkitError], list[str]]] = {
    "missing shard": (
        without(SHARDS[1]), FormatError, ["1 of 3 shards missing", SHARDS[1], "hf download"]),
    "two missing shards": (
        without(*SHARDS[1:]), FormatError, ["2 of 3 shards missing", SHARDS[1], SHARDS[2]]),
    "dangling link": (
        lambda folder: ((sharded(folder) / SHARDS[1]).unlink(), (folder / SHARDS[1]).symlink_to("gone")), FormatError,
        [SHARDS[1], "missing"]),
    "loop of links": (
        lambda folder: ((sharded(folder) / SHARDS[1]).unlink(), (folder / SHARDS[1]).symlink_to(SHARDS[1])),
        FormatError, [SHARDS[1]]),
    "shard named with ..": (
        set_shard("../x.safetensors"), FormatError, ["index.json", "../x.safetensors", "outside the folder"]),
    "shard named with .. inside": (
        set_shard("a/../../x.safetensors"), FormatError, ["a/../../x.safetensors", "outside the folder"]),
    "absolute shard": (
        set_shard("/etc/x.safetensors"), FormatError, ["index.json", "/etc/x.safetensors", "outside the folder"]),
    "shard on a drive": (set_shard("C:\\x.safetensors"), FormatError, ["outside the folder"]),
    "shard with backslashes": (set_shard("a\\..\\x.safetensors"), FormatError, ["not a valid file name"]),
    "shard of another kind": (set_shard("config.json"), FormatError, ["config.json", "not a .safetensors file"]),
    "shard name empty": (set_shard(""), FormatError, ["not a .safetensors file"]),
    "shard name with NUL": (set_shard("a\0.safetensors"), FormatError, ["not a valid file name"]),
    "shard name too long": (set_shard("é" * 200 + ".safetensors"), FormatError, ["missing"]),
    "shard a folder": (
        lambda folder: ((sharded(folder) / SHARDS[1]).unlink(), (folder / SHARDS[1]).mkdir()), FormatError,
        [SHARDS[1], "not a regular file"]),
    "link out of the folder": (outside_link, FormatError, [SHARDS[1], "elsewhere.safetensors", "outside its folder"]),
    "link from the cache beyond its blobs": (cache_link_beyond_blobs, FormatError, [SHARDS[0], "outside its folder"]),
    "config a link out of the folder": (linked_config, FormatError, ["config.json", "outside its folder"]),
    "index entry missing in its shard": (
        lambda folder: edit_index(sharded(folder), lambda weight_map: weight_map.update({"extra": SHARDS[2]})),
        FormatError, [SHARDS[2], "tensor 'extra'", "is missing"]),
    "index entry in another shard": (
        lambda folder: edit_index(sharded(folder), lambda weight_map: weight_map.update({"t0.x": SHARDS[2]})),
        FormatError, [SHARDS[2], "tensor 't0.x'", f"is in {SHARDS[0]}"]),
    "tensor in two shards": (
        lambda folder: save(sharded(folder) / SHARDS[1], "t1.x", "t1.y", "t0.x"), FormatError,
        [SHARDS[1], "tensor 't0.x'", f"also in {SHARDS[0]}"]),
    "index not JSON": (index_text("{"), FormatError, ["index.json", "not valid JSON"]),
    "index without a map": (index_text("{}"), FormatError, ["index.json", "weight_map", "null"]),
    "index with an empty map": (index_text('{"weight_map": {}}'), FormatError, ["weight_map"]),
    "index with a list": (index_text('{"weight_map": []}'), FormatError, ["weight_map", "an array"]),
    "index with a number": (index_text('{"weight_map": {"t0.x": 1}}'), FormatError, ["tensor 't0.x'", "an integer"]),
    "index with a duplicate": (
        index_text(f'{{"weight_map": {{"t": "{SHARDS[0]}", "t": "{SHARDS[1]}"}}}}'), FormatError, ["'t'", "twice"]),
    "truncated shard": (
        lambda folder: os.truncate(sharded(folder) / SHARDS[2], 200), FormatError, [SHARDS[2], "truncated"]),
    "shard an LFS pointer": (
        lambda folder: (sharded(folder) / SHARDS[0]).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        FormatError, [SHARDS[0], "git lfs pull"]),
    "unindexed shard missing": (
        without(SHARDS[1], "model.safetensors.index.json"), FormatError,
        ["2 of 3 shards", SHARDS[1], "hf download"]),
    "unindexed shards that claim to be 99999": (
        lambda folder: single(folder, "model-00001-of-99999.safetensors"), FormatError, ["99,999"]),
    "several files and no index": (
        lambda folder: (single(folder, "one.safetensors"), save(folder / "two.safetensors", "c")), UnsupportedError,
        ["one.safetensors, two.safetensors", "index"]),
    "no tensors": (
        lambda folder: save(single(folder) / "model.safetensors"), FormatError, ["model.safetensors", "no tensors"]),
    "config not JSON": (config_text("{'a': 1}"), FormatError, ["config.json", "not valid JSON", "line 1"]),
    "config not an object": (config_text("[]"), FormatError, ["config.json", "an array"]),
    "config not UTF-8": (config_text(b'{"a": "\xff"}'), FormatError, ["config.json", "UTF-8"]),
    "config with a duplicate key": (config_text('{"a": 1, "a": 2}'), FormatError, ["config.json", "'a'", "twice"]),
    "config nested too deeply": (config_text("[" * 100_000), FormatError, ["config.json", "nested too deeply"]),
    "config with an endless integer": (config_text('{"a": ' + "9" * 9000 + "}"), FormatError, ["thousands of digits"]),
    "config too large": (config_text(" " * (17 << 20)), FormatError, ["config.json", "at most 16,777,216"]),
    "generation config broken": (
        lambda folder: (single(folder) / "generation_config.json").write_text("{"), FormatError,
        ["generation_config.json", "not valid JSON"]),
    "no config": (
        lambda folder: (single(folder) / "config.json").unlink(), FormatError,
        ["config.json is missing", "hf download"]),
    "empty folder": (lambda folder: None, FormatError, ["not a model checkpoint"]),
    "config and nothing else": (config_with(), FormatError, ["no weights", "model.safetensors"]),
    "no PyTorch checkpoint": (config_with("pytorch_model.bin"), FormatError, ["pytorch_model.bin", "no PyTorch"]),
    "PyTorch shards without an index": (
        config_with("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"), UnsupportedError,
        ["2 PyTorch files", "pytorch_model.bin.index.json"]),
    "pth without config": (config_with("consolidated.00.pth", config=False), UnsupportedError, ["consolidated.00.pth"]),
    "original Llama layout": (
        config_with("consolidated.00.pth", "params.json", config=False), UnsupportedError,
        ["params.json", "Hugging Face format"]),
    "original Mistral layout": (
        config_with("consolidated.safetensors", "params.json", config=False), UnsupportedError,
        ["params.json", "Hugging Face format"]),
    "only consolidated weights": (config_with("consolidated.safetensors"), UnsupportedError, ["consolidated"]),
    "GGUF": (config_with("x-Q4_K_M.gguf", config=False), UnsupportedError, ["x-Q4_K_M.gguf", "name the file itself"]),
    "GGUF with config": (config_with("x-Q4_K_M.gguf"), UnsupportedError, ["x-Q4_K_M.gguf"]),
    "adapter": (
        config_with("adapter_config.json", "adapter_model.safetensors", config=False), UnsupportedError,
        ["LoRA adapter", "merge"]),
    "folder of the cache above the snapshots": (
        lambda folder: [(folder / name).mkdir() for name in ("blobs", "snapshots", "refs")], FormatError,
        ["cache", "snapshots/"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, tmp_path: Path) -> None:
    make, error, expected = CASES[name]
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(error) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    for part in [str(folder), *expected]:
        assert part in message


def json_values(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)


PIECES = ["..", ".", "", "/", "//", "model", "sub", "link", "decoy.safetensors", SHARDS[0], "\\", "\0", "C:", "~", " "]


@given(pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6))
def test_no_name_in_an_index_leads_outside(pieces: list[str], tmp_path: Path) -> None:
    """Whatever the index calls its shard, files beside the folder are never opened."""
    folder = tmp_path / "model"
    if not folder.exists():
        (sharded(folder) / "sub").mkdir()
        (folder / "link").symlink_to("..")
        save(folder / "sub" / "decoy.safetensors", "inside")
        save(tmp_path / "decoy.safetensors", "outside")
    for name in ("/".join(pieces), "".join(pieces), f"{tmp_path}/{'/'.join(pieces)}"):
        index = {"weight_map": {"outside": name}}
        write_json(folder / "model.safetensors.index.json", index)
        with pytest.raises(FormatError):  # the only file with that tensor is outside
            open_checkpoint(folder)


@given(content=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), json_values, max_leaves=8))
def test_any_json_as_index_and_config(content: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        sharded(folder)
    for index in (content, {"weight_map": content}, {"weight_map": {"t0.x": content}}):
        write_json(folder / "model.safetensors.index.json", index)
        with pytest.raises(FormatError):
            open_checkpoint(folder)
    (folder / "model.safetensors.index.json").unlink()
    write_json(folder / "config.json", content)
    if isinstance(content, dict):
        assert open_checkpoint(folder).config == content
    else:
        with pytest.raises(FormatError, match=r"config\.json"):
            open_checkpoint(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFoundError, match="found a file"):
        open_checkpoint(tmp_path / "file")
    with pytest.raises(ModelNotFoundError, match="cannot be listed"):
        open_checkpoint(tmp_path / ("x" * 300))
