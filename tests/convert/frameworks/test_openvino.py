"""What OpenVINO's own pass for paged attention, with which openvino_genai runs models, makes of llmkit's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmkit
from tests.convert.frameworks.reference import CONTEXT, reference, require

N_MODEL_WIDE = 9  # inputs of PagedAttention before the scale


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
def test_paged_attention_knows_windows_and_sinks(family: str, tmp_path: Path) -> None:
    require("openvino")
    import openvino as ov
    from openvino._offline_transformations import paged_attention_transformation

    source = reference(family).folder
    folder = llmkit.convert(source, "openvino-fp32", output=tmp_path / "m", context=CONTEXT, threads=2).path
    model = ov.Core().read_model(folder / "openvino_model.xml")
    paged_attention_transformation(model)
    attention = [node for node in model.get_ordered_ops() if node.get_type_name() == "PagedAttentionExtension"]
    config = json.loads((source / "config.json").read_text())
    kinds = config.get("layer_types", ["full_attention"] * config["num_hidden_layers"])
    windows = [config["sliding_window"] if kind == "sliding_attention" else 0 for kind in kinds]
    assert [value_of(node, N_MODEL_WIDE + 1) for node in attention] == windows
    n_sinks = {int(node.input_value(20).get_partial_shape()[1].get_length()) for node in attention}
    assert n_sinks == {config["num_attention_heads"] if family == "gpt_oss" else 0}


def value_of(node: Any, number: int) -> int:
    """A scalar that an input is computed to be."""
    import openvino as ov
    from openvino import opset15 as op

    model = ov.Model([op.result(node.input_value(number))], [], "scalar")
    return int(ov.Core().compile_model(model, "CPU")([])[0])
