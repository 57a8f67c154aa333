"""The way back of GPT-OSS, whose checkpoints have gate and up in turns: row by row in MXFP4, else column by column."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import llmkit
from llmkit.convert.checkpoint import open_checkpoint
from llmkit.errors import UnsupportedError
from llmkit.formats.gguf import open_gguf
from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from tests.convert.packed.test_mxfp4 import CONFIG, EXPERTS, tensors, theirs, write

_EXPERTS = "model.layers.1.mlp.experts."


def test_mxfp4_comes_back_bit_for_bit(tmp_path: Path) -> None:
    gguf = llmkit.convert(write(tmp_path / "m"), "gguf-bf16", output=tmp_path / "x.gguf").path
    back = llmkit.convert(gguf, "safetensors", output=tmp_path / "back", verify=True).path
    found, expected = load_file(back / "model.safetensors"), tensors()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name
    config = json.loads((back / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    # As published, though files cannot say that the ramp is not truncated.
    assert config["rope_scaling"] == CONFIG["rope_scaling"]
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    again = llmkit.convert(back, "gguf-bf16", output=tmp_path / "again.gguf").path
    with open_gguf(gguf) as a, open_gguf(again) as b:
        assert a.tensors.keys() == b.tensors.keys()
        for name in a.tensors:
            assert np.array_equal(a.raw(name), b.raw(name)), name


@pytest.mark.parametrize("memory", ["1GB", "40KB"])
@pytest.mark.parametrize("type", ["f32", "bf16"])
def test_mxfp4_decoded(type: str, memory: str, tmp_path: Path) -> None:
    gguf = llmkit.convert(write(tmp_path / "m"), "gguf-f32", output=tmp_path / "x.gguf").path
    back = llmkit.convert(gguf, f"safetensors-{type}", output=tmp_path / "back", memory=memory, verify=True).path
    found = load_file(back / "model.safetensors")
    for name in ("gate_up_proj", "down_proj"):
        # These values are exact in bfloat16, too.
        decoded = found[_EXPERTS + name].float().numpy()
        assert np.array_equal(decoded, theirs(_EXPERTS + name).transpose(0, 2, 1)), name
        assert torch.equal(found[f"{_EXPERTS}{name}_bias"].float(), tensors()[f"{_EXPERTS}{name}_bias"].float())
    assert "quantization_config" not in json.loads((back / "config.json").read_text())
    assert open_checkpoint(back).n_params > 0


def test_other_quantised_experts(tmp_path: Path) -> None:
    gguf = llmkit.convert(
        write(tmp_path / "m"), "gguf-q8_0", output=tmp_path / "x.gguf", tensor_types=["_exps=q8_0"]
    ).path
    back = llmkit.convert(gguf, "safetensors-f32", output=tmp_path / "back").path
    found = load_file(back / "model.safetensors")[f"{_EXPERTS}gate_up_proj"].numpy()
    with open_gguf(gguf) as file:
        for place, role in enumerate(("gate", "up")):
            info = file.tensors[f"blk.1.ffn_{role}_exps.weight"]
            assert info.dtype == "Q8_0"
            values = np.empty((EXPERTS * info.shape[1], info.shape[2]), np.float32)
            scheme(TensorType.Q8_0).decode(file.raw(info.name).reshape(len(values), -1), values)
            expected = values.reshape(info.shape).transpose(0, 2, 1)
            assert np.array_equal(found[:, :, place::2], expected), role


def test_where_only_one_of_two_is_mxfp4(tmp_path: Path) -> None:
    folder = write(tmp_path / "m")
    gguf = llmkit.convert(folder, "gguf-q8_0", output=tmp_path / "x.gguf", tensor_types=["ffn_up_exps=q8_0"]).path
    with pytest.raises(
        UnsupportedError, match=r"x.gguf: only some of the tensors .* 'model.layers.0.*safetensors-bf16"
    ):
        llmkit.convert(gguf, "safetensors", output=tmp_path / "back")
    assert llmkit.convert(gguf, "safetensors-bf16", output=tmp_path / "back").path.is_dir()
