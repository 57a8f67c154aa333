"""Columns balanced by importance: the model stays the same, its rounding gets better."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.convert.chunks import Buffers, cut
from llmkit.convert.plan import ConversionPlan
from llmkit.convert.sources import open_inputs, read_rows, read_values
from llmkit.quantize.imatrix import ImportanceMatrix
from tests.tinymodels import TinyLlama


def values_of(plan: ConversionPlan) -> dict[str, NDArray[np.float32]]:
    """What a plan encodes, before it does."""
    found = {t.name: np.empty(t.matrix, np.float32) for t in plan.tensors}
    buffers = Buffers()
    with open_inputs(plan.tensors) as inputs:
        for chunk in cut(plan, 1 << 20):
            rows = slice(chunk.first_row, chunk.first_row + chunk.n_rows)
            found[chunk.tensor.name][rows] = read_values(chunk, read_rows(chunk, inputs, buffers), buffers)
    return {t.name: found[t.name].reshape(t.shape) for t in plan.tensors}


def importance_of(checkpoint: Path, folder: Path) -> Path:
    text = folder / "text.txt"
    text.write_text("The day is long, and the night is longer; for x in range(10): print(x)\n" * 100)
    return llmkit.compute_importance(
        checkpoint, text, output=folder / "imatrix.gguf", process_output=True, chunks=2, chunk_size=128
    ).path


@pytest.mark.parametrize("bias", [False, True])
def test_the_model_stays_the_same(bias: bool, tmp_path: Path) -> None:
    tiny = TinyLlama(dtype="F32", bias=bias)
    checkpoint = tiny.write(tmp_path / "m")
    matrix = importance_of(checkpoint, tmp_path)
    plan = llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "o", imatrix=matrix, dry_run=True).plan
    assert any("9 matrices have their columns balanced" in note for note in plan.notes)
    found, weights = values_of(plan), tiny.weights()
    moved = {}
    for i in range(2):
        ours, theirs = f"blk.{i}.", f"model.layers.{i}."
        qkv = found[f"{ours}attn_qkv.weight"]
        for name, rows in (("q", slice(0, 256)), ("k", slice(256, 384)), ("v", slice(384, 512))):
            moved[f"{theirs}self_attn.{name}_proj.weight"] = qkv[rows]
        for name, other in (
            ("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj"), ("attn_output", "self_attn.o_proj"),
        ):  # fmt: skip
            moved[f"{theirs}{other}.weight"] = found[f"{ours}{name}.weight"]
        if bias:
            moved[f"{theirs}mlp.up_proj.bias"] = found[f"{ours}ffn_up.bias"]
    moved |= {"model.norm.weight": found["output_norm.weight"], "lm_head.weight": found["output.weight"]}
    changed = [name for name, values in moved.items() if not np.array_equal(values, weights[name])]
    assert len(changed) == 2 * (8 + bias) + 2  # all but attn_output
    other = Path(shutil.copytree(checkpoint, tmp_path / "balanced"))
    tiny.write_weights(other, weights | moved)
    ids = list(range(3, 67))
    with llmkit.load(checkpoint, n_threads=1) as one, llmkit.load(other, n_threads=1) as two:
        assert np.abs(one.logits(ids) - two.logits(ids)).max() < 1e-4


def test_rounding_gets_better(smollm2_dithered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydoc_data.topics import topics

    from llmkit.convert.network import weighing

    text = tmp_path / "text.txt"
    text.write_text("".join(topics[key] for key in sorted(topics)[20:40]))
    matrix = llmkit.compute_importance(
        smollm2_dithered, text, output=tmp_path / "imatrix.gguf", process_output=True, chunks=6, products=576
    ).path
    fed_back = llmkit.convert(smollm2_dithered, "onnx-int4", output=tmp_path / "c", imatrix=matrix)
    assert any("151 matrices are rounded with feedback" in note for note in fed_back.plan.notes)
    monkeypatch.setattr(ImportanceMatrix, "feedback", lambda *_: None)
    balanced = llmkit.convert(smollm2_dithered, "onnx-int4", output=tmp_path / "a", imatrix=matrix).path
    with monkeypatch.context() as patch:
        patch.setattr(weighing, "balance", lambda tensors, structure, h: (list(tensors), 0))
        plain = llmkit.convert(smollm2_dithered, "onnx-int4", output=tmp_path / "b", imatrix=matrix).path
    with llmkit.load(smollm2_dithered, n_threads=1) as session:
        ids = session.tokenize(topics["assert"] + topics["assignment"])[:256]
        expected = session.logits(ids)

    def divergence(folder: Path) -> float:
        with llmkit.load(folder, n_threads=1, device="cpu") as session:
            p, q = (log_softmax(x) for x in (expected, session.logits(ids)))
        return float((np.exp(p) * (p - q)).sum(-1).mean())

    assert divergence(balanced) < 0.85 * divergence(plain)
    assert divergence(fed_back.path) < 0.75 * divergence(balanced)
    # The same size to the byte.
    assert len({(folder / "model.onnx.data").stat().st_size for folder in (balanced, plain, fed_back.path)}) == 1


def log_softmax(values: NDArray[np.float32]) -> NDArray[Any]:
    shifted = values.astype(np.float64) - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
