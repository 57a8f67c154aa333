"""Folders of ONNX Runtime GenAI that are damaged, incomplete, contradictory, or lead out of themselves."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest

import llmkit
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.genai import read_genai_folder
from llmkit.formats.onnxmodel import read_onnx
from tests.tinymodels import TinyLlama


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    checkpoint = TinyLlama().write(folder / "m")
    return llmkit.convert(checkpoint, "onnx-int4", output=folder / "out").path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_what_is_read_is_what_onnx_reads(folder: Path) -> None:
    found = read_onnx(folder / "model.onnx")
    expected = onnx.load(folder / "model.onnx", load_external_data=False)
    assert found.producer == "llmkit"
    assert found.opsets == {entry.domain: entry.version for entry in expected.opset_import}
    assert list(found.inputs) == [value.name for value in expected.graph.input]
    assert list(found.outputs) == [value.name for value in expected.graph.output]
    assert found.inputs["past_key_values.0.key"] == ("batch_size", 2, "past_sequence_length", 64)
    assert sum(found.operators.values()) == len(expected.graph.node)
    for tensor in expected.graph.initializer:
        ours = found.tensors[tensor.name]
        assert ours.shape == tuple(tensor.dims)
        assert ours.dtype == onnx.TensorProto.DataType.Name(tensor.data_type)
        places = {entry.key: entry.value for entry in tensor.external_data}
        assert (ours.location is None) == (not places)
        if places:
            assert (str(ours.offset), str(ours.nbytes)) == (places["offset"], places["length"])


@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/passwd", "a/../../x", ""])
def test_weights_outside_the_folder(location: str, folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for entry in next(t for t in model.graph.initializer if t.external_data).external_data:
            if entry.key == "location":
                entry.value = location

    change_graph(folder, change)
    with pytest.raises(FormatError, match="outside its folder: refused"):
        read_genai_folder(folder)


def test_a_link_that_leads_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    data = folder / "model.onnx.data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="outside its folder: refused"):
        read_genai_folder(folder)


def test_a_missing_file_of_weights(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()
    with pytest.raises(FormatError, match=r"its weights are in model\.onnx\.data, which is not there"):
        read_genai_folder(folder)


def test_a_file_of_weights_that_is_cut_short(folder: Path) -> None:
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(FormatError, match=r"model\.onnx\.data.*has [\d,]+ bytes, and model\.onnx wants .* incomplete"):
        read_genai_folder(folder)


def test_a_length_that_contradicts_the_shape(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        next(t for t in model.graph.initializer if t.external_data).dims[0] += 1

    change_graph(folder, change)
    with pytest.raises(FormatError, match="its type and shape make"):
        read_genai_folder(folder)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (
            ("model", "decoder", "num_hidden_layers"),
            3,
            r"says 'past_key_values\.2\.key', and model.onnx",
        ),
        (("model", "decoder", "num_hidden_layers"), 1, "num_hidden_layers 1, and model.onnx has more"),
        (("model", "decoder", "num_key_value_heads"), 4, "num_key_value_heads 4 and head_size 64 contradict"),
        (("model", "decoder", "head_size"), 32, "num_key_value_heads 2 and head_size 32 contradict"),
        (("model", "vocab_size"), 321, "vocab_size 321 contradicts model.onnx"),
        (("model", "vocab_size"), "many", "vocab_size must be a positive number"),
        (("model", "context_length"), 0, "context_length must be a positive number, found 0"),
        (("model", "eos_token_id"), [1, "x"], "eos_token_id must be a token id or a list"),
        (("model", "decoder", "filename"), "../model.onnx", "must be the name of a file in the folder"),
        (("model", "decoder", "filename"), "other.onnx", "other.onnx"),
        (
            ("model", "decoder", "outputs", "logits"),
            "scores",
            "logits says 'scores', and .* has no such output",
        ),
        (("model", "decoder"), [], "decoder: expected an object"),
    ],
)
def test_settings_that_contradict_the_graph(keys: tuple[str, ...], value: Any, message: str, folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    change_config(folder, change)
    with pytest.raises(LlmkitError, match=message):
        read_genai_folder(folder)


def test_a_model_of_several_parts(folder: Path) -> None:
    change_config(folder, lambda config: config["model"].update(vision={}))
    with pytest.raises(UnsupportedError, match="several parts"):
        read_genai_folder(folder)


def test_damaged_graphs_are_errors_of_llmkit(folder: Path) -> None:
    path = folder / "model.onnx"
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.randrange(1, 6)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        with suppress(FormatError):
            read_onnx(path)
