"""Any view of a packed tensor, in chunks of any size: the values are those of NumPy's view of the whole weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llmkit.convert.archs.config import ConfigReader
from llmkit.convert.chunks import Buffers, cut
from llmkit.convert.packed import PackedTensor, unpack
from llmkit.convert.plan import ConversionPlan, PlannedFile, PlannedTensor, Stored
from llmkit.convert.sources import open_inputs, read_rows
from llmkit.convert.transforms import View
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.safetensors import read_header
from llmkit.types import TensorInfo, TensorType
from tests.convert.packed import packing
from tests.convert.test_transforms import SHAPE, VIEWS


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackedTensor, np.ndarray]:
    """8-bit weights of the shape that the views are of, and what they stand for."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, SHAPE).astype(np.int8)
    scales = rng.uniform(0.1, 1, (*SHAPE[:-1], 1)).astype(np.float32)
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    save_file({"t": torch.from_numpy(codes), "t_scale": torch.from_numpy(scales)}, path)
    tensor = opened(path, {"quant_method": "compressed-tensors", "format": "int-quantized"})["t"]
    assert not isinstance(tensor, TensorInfo)
    return tensor, codes * scales


def opened(path: Path, settings: dict[str, object]) -> dict[str, TensorInfo | PackedTensor]:
    config = ConfigReader(path, {"quantization_config": settings})
    return dict(unpack(config, read_header(path).tensors, []))


def read_all(part: Stored, budget: int = 1 << 20) -> bytes:
    """The bytes of a tensor of this one part, in float32."""
    shape = part.view.shape
    planned = PlannedTensor("t", shape, TensorType.F32, (part,), 0, 4 * part.n_elements, wanted=TensorType.F32)
    plan = ConversionPlan(Path(), "", "", "", (PlannedFile(b"", (planned,), 0),), ())
    with open_inputs([planned]) as inputs:
        return b"".join(read_rows(chunk, inputs, Buffers()).tobytes() for chunk in cut(plan, budget))


@pytest.mark.parametrize("name", VIEWS)
@given(budget=st.integers(500, 20000))
def test_reading_through_a_view(name: str, budget: int, packed: tuple[PackedTensor, np.ndarray]) -> None:
    tensor, weight = packed
    ours, theirs = VIEWS[name]
    expected = np.ascontiguousarray(theirs(weight))
    part = Stored(tensor, ours(View.of(SHAPE)))
    assert read_all(part, budget) == expected.tobytes()


def test_a_file_that_was_cut_off(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"m.{key}": value for key, value in packing.awq(rng, 64, 64)[0].items()}, path)
    tensor = opened(path, {"quant_method": "awq"})["m.weight"]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    with pytest.raises(FormatError, match="too early; it has changed"):
        read_all(Stored.whole(tensor))


def broken(tensors: packing.Tensors, **changes: torch.Tensor | None) -> packing.Tensors:
    return {key: value for key, value in (tensors | changes).items() if value is not None}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
PACKED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"g": {"weights": {"num_bits": 4}}},
}  # fmt: skip
NF4 = {"quant_method": "bitsandbytes"}


@pytest.mark.parametrize(
    ("settings", "kind", "changes", "message"),
    [
        (GPTQ, "gptq", {"scales": None}, "'m.scales': missing, which quantised weights"),
        (GPTQ, "gptq", {"scales": torch.zeros(3, 256)}, r"shape \[3, 256\]; groups of 128 of 256 inputs make it \[2, "),
        (GPTQ, "gptq", {"qzeros": torch.zeros(2, 4, dtype=torch.int32)}, r"'m.qzeros': shape \[2, 4\] does not fit"),
        (GPTQ, "gptq", {"qweight": torch.zeros(32, 256)}, "has dtype F32; this quantisation has I32"),
        (GPTQ, "gptq", {"g_idx": torch.zeros(100, dtype=torch.int32)}, "which makes no code of"),
        (GPTQ, "gptq", {"g_idx": torch.full((256,), 9, dtype=torch.int32)}, "names groups 9 to 9; there are 2"),
        ({"quant_method": "awq"}, "awq", {"qweight": torch.zeros(8, dtype=torch.int32)}, "packed weights are matrices"),
        (PACKED, "pack_quantized", {"weight_shape": torch.tensor([256, 999])}, r"does not hold .256, 999. codes"),
        (PACKED, "pack_quantized", {"weight_shape": torch.tensor([-1, 256])}, r"weights have shape \[-1, 256\]"),
        (PACKED, "pack_quantized", {"weight_scale": torch.zeros(256, 3)}, "3 groups do not divide rows of 256"),
        (NF4, "bitsandbytes4", {"weight.absmax": torch.zeros(5)}, r"absmax': shape \[5\] does not fit"),
        (NF4, "bitsandbytes4", {"weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}, "JSON"),
    ],
)
def test_parts_that_do_not_fit(
    settings: dict[str, object], kind: str, changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    tensors = broken(getattr(packing, kind)(rng, 256, 256)[0], **changes)
    path = tmp_path / "model.safetensors"
    save_file({f"m.{key}": value for key, value in tensors.items()}, path)
    with pytest.raises(FormatError, match=message):
        read_all(Stored.whole(opened(path, settings)["m.weight"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "hqq"}, "'hqq', which is not known to llmkit .known: awq, bitsandbytes, "),
        ({"quant_method": "torchao"}, "'torchao'"),
        ({}, "None"),
        ({"quant_method": "gptq", "bits": 5}, "GPTQ with bits 5"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ version 'gemv'"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized'"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
    ],
)
def test_methods_that_are_not_read(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UnsupportedError, match=message):
        opened(path, settings)
