"""Quantised models against the same graph in float32 on the weights that they stand for, decoded in plain NumPy.

That graph is held to transformers by the ONNX column of scripts/parity.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.conversion import ConversionResult
from llmkit.convert.plan import PlannedTensor
from llmkit.quantize.blockwise import BlockwiseFormat

SCRIPTS = str(Path(__file__).resolve().parents[3] / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

FAMILIES: dict[str, Any] = import_module("parities.families").FAMILIES
NAMES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "smollm3", "olmo2", "granite"),
    *("qwen3_moe", "mixtral", "gpt_oss"),
)
MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss")


def decoded(tensor: PlannedTensor, data: bytes) -> NDArray[np.float32]:
    form = tensor.type
    assert isinstance(form, BlockwiseFormat)
    rows, columns = tensor.matrix
    codes, scales, *zeros = (np.frombuffer(data, np.uint8, n, at) for at, n in tensor.ranges(0, rows))
    return form.decode_oracle(
        codes.reshape(form.codes_shape(rows, columns)),
        scales.view(np.float32).reshape(form.scales_shape(rows, columns)),
        zeros[0].reshape(form.zero_points_shape(rows, columns)) if zeros else None,
        columns,
    )


def fill_in(reference: ConversionResult, quantised: ConversionResult) -> int:
    """Put the decoded weights of one folder in the place of the other's; says how many matrices that are."""
    values = {tensor.name: tensor for tensor in quantised.plan.tensors}
    data = (quantised.path / "model.onnx.data").read_bytes()
    count = 0
    with (reference.path / "model.onnx.data").open("r+b") as file:
        for place in reference.plan.tensors:
            if isinstance(values[place.name].type, BlockwiseFormat):
                file.seek(place.offset)
                file.write(decoded(values[place.name], data).tobytes())
                count += 1
    return count


def logits(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    with llmkit.load(folder, n_threads=1, device="cpu") as session:
        return session.logits(ids)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("target", "options"), [("onnx-int8", {}), ("onnx-int4", {"symmetric": False})])
def test_logits_are_those_of_the_decoded_weights(
    name: str, target: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = import_module("parities.tiny").make(name, FAMILIES[name], tmp_path / "model")
    if name == "qwen3_moe":
        options = {**options, "block_size": 16}  # its experts' rows are no whole blocks of 32
    # A token that rounding sends to other experts is far off; of the texts that are drawn this one has few.
    ids = np.random.default_rng(5).integers(3, model.config.get_text_config().vocab_size, 48).tolist()
    reference = llmkit.convert(tmp_path / "model", "onnx-fp32", output=tmp_path / "reference")
    found = {}
    for level in (1, 4):
        quantised = llmkit.convert(
            tmp_path / "model", target, output=tmp_path / f"level-{level}", accuracy_level=level, **options
        )
        found[level] = logits(quantised.path, ids)
    before = logits(reference.path, ids)
    assert fill_in(reference, quantised) > 4
    expected = logits(reference.path, ids)
    assert np.abs(expected - before).mean() > 0.005 * expected.std()
    # QMoE rounds activations to 8 bits where weights have 8, whatever the level.
    if target == "onnx-int8" and name in MIXTURES:
        assert np.abs(found[1] - expected).mean() < 0.06 * expected.std()
    else:
        assert np.abs(found[1] - expected).max() < 1e-5 * np.ptp(expected)
    assert np.abs(found[4] - expected).mean() < 0.06 * expected.std()
