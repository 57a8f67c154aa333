"""Folders for ONNX Runtime GenAI: what is in them, what their weights are, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.convert.onnx.recipes import OnnxOptions, OnnxType, find_onnx_recipe, parse_onnx_type
from llmkit.errors import LlmkitError, UnsupportedError
from llmkit.formats.genai import read_genai_folder
from llmkit.quantize.blockwise import BlockwiseFormat
from tests.tinymodels import TinyLlama

IDS = list(range(3, 67))


def logits(folder: Path, **options: Any) -> NDArray[np.float32]:
    with llmkit.load(folder, n_threads=1, device="cpu", **options) as session:
        return session.logits(IDS)


def decoded(folder: Path, name: str, form: BlockwiseFormat, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The weights that a tensor of the folder stands for, decoded by the oracle."""
    rows, columns = shape
    tensors = read_genai_folder(folder).model.tensors
    data = (folder / "model.onnx.data").read_bytes()

    def bytes_of(part: str) -> NDArray[np.uint8]:
        tensor = tensors[f"{name}.{part}"]
        return np.frombuffer(data, np.uint8, tensor.nbytes, tensor.offset)

    zeros = None if form.symmetric else bytes_of("zero_points").reshape(form.zero_points_shape(rows, columns))
    scales = bytes_of("scales").view(np.float32).reshape(form.scales_shape(rows, columns))
    return form.decode_oracle(bytes_of("codes").reshape(form.codes_shape(rows, columns)), scales, zeros, columns)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("target", ["onnx-fp32", "onnx-int8", "onnx-int4"])
def test_a_valid_model(tied: bool, target: str, tmp_path: Path) -> None:
    checkpoint = TinyLlama(tied=tied, bias=True).write(tmp_path / "m")
    result = llmkit.convert(checkpoint, target, output=tmp_path / "out", verify=True)
    onnx.checker.check_model(str(result.path / "model.onnx"), full_check=True)
    strict = onnxruntime.SessionOptions()
    strict.add_session_config_entry("session.strict_shape_type_inference", "1")
    onnxruntime.InferenceSession(result.path / "model.onnx", strict, providers=["CPUExecutionProvider"])
    assert {path.name for path in result.path.iterdir()} >= {
        "model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    found = read_genai_folder(result.path)
    assert (found.n_layers, found.n_vocab, found.n_context) == (2, 320, 512)
    assert found.ends == {1}
    assert found.model.files == (result.path / "model.onnx.data",)
    # What the embedding and the output matrix share is there once.
    places = [(t.offset, t.nbytes) for name, t in found.model.tensors.items() if "token_embd" in name and "." in name]
    used = sum(size for _, size in set(places))
    assert used < 320 * 256 * {"onnx-fp32": 4.01, "onnx-int8": 1.26, "onnx-int4": 0.66}[target]
    assert any(name.startswith("output.weight") for name in found.model.tensors) is not tied


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("onnx-int8", {"provider": "webgpu"}),
        ("onnx-int4", {"provider": "cuda", "tensor_types": ["token_embd=int8"]}),
        ("onnx-int4", {"recipe": "quality"}),
    ],
)
def test_onnx_runtimes_own_inference_finds_every_shape(target: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Of what its script knows: not FusedMatMul, and embeddings of 4 bits it takes for ones of half as many columns."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    checkpoint = TinyLlama(tied=False, bias=True).write(tmp_path / "m")
    folder = llmkit.convert(checkpoint, target, output=tmp_path / "out", **options).path
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    inferred = SymbolicShapeInference.infer_shapes(model).graph
    found = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    names = {name for node in model.graph.node for name in node.output if name}
    assert names <= set(found)
    assert all(found[name].HasField("shape") and found[name].elem_type for name in names)
    (logits,) = (value for value in inferred.output if value.name == "logits")
    assert logits.type.tensor_type.shape.dim[2].dim_value == 320


@pytest.mark.parametrize(
    ("target", "options", "form"),
    [
        ("onnx-int8", {}, BlockwiseFormat(8, 32, symmetric=True)),
        ("onnx-int4", {}, BlockwiseFormat(4, 32, symmetric=True)),
        ("onnx-int4", {"block_size": 128, "symmetric": False}, BlockwiseFormat(4, 128, symmetric=False)),
        ("onnx-int8", {"block_size": 16, "symmetric": False}, BlockwiseFormat(8, 16, symmetric=False)),
    ],
)
def test_logits_are_those_of_the_decoded_weights(
    target: str, options: dict[str, Any], form: BlockwiseFormat, tmp_path: Path
) -> None:
    tiny = TinyLlama(dtype="F32", tied=True)
    checkpoint = tiny.write(tmp_path / "m")
    for level in (1, 4):
        out = tmp_path / f"level-{level}"
        llmkit.convert(checkpoint, target, output=out, accuracy_level=level, **options)
    weights = tiny.weights()
    embedding = decoded(tmp_path / "level-1", "token_embd.weight", form, (320, 256))
    weights["model.embed_tokens.weight"] = embedding
    for i in range(2):
        block = f"model.layers.{i}."
        qkv = decoded(tmp_path / "level-1", f"blk.{i}.attn_qkv.weight", form, (512, 256))
        for name, rows in (("q", slice(0, 256)), ("k", slice(256, 384)), ("v", slice(384, 512))):
            weights[f"{block}self_attn.{name}_proj.weight"] = qkv[rows]
        for theirs, ours, shape in (
            ("self_attn.o_proj", "attn_output", (256, 256)),
            ("mlp.gate_proj", "ffn_gate", (512, 256)),
            ("mlp.up_proj", "ffn_up", (512, 256)),
            ("mlp.down_proj", "ffn_down", (256, 512)),
        ):
            weights[f"{block}{theirs}.weight"] = decoded(tmp_path / "level-1", f"blk.{i}.{ours}.weight", form, shape)
    plain = tiny.write(tmp_path / "decoded")
    tiny.write_weights(plain, weights)
    reference = logits(llmkit.convert(plain, "onnx-fp32", output=tmp_path / "reference").path)
    assert np.ptp(reference) > 4
    for level, tolerance in ((1, 2e-4), (4, 0.6)):
        assert np.abs(logits(tmp_path / f"level-{level}") - reference).max() < tolerance


def test_queries_keys_and_values_of_several_types(tmp_path: Path) -> None:
    """What attention is given in three pieces comes to the same as in one."""
    checkpoint = TinyLlama(dtype="F32", bias=True).write(tmp_path / "m")
    exact = logits(llmkit.convert(checkpoint, "onnx-fp32", output=tmp_path / "a").path)
    apart = llmkit.convert(checkpoint, "onnx-fp32", output=tmp_path / "b", tensor_types=["attn_v=int8/16"])
    assert {"blk.0.attn_q.weight", "blk.0.attn_v.bias"} <= {t.name for t in apart.plan.tensors}
    assert np.abs(logits(apart.path) - exact).max() < 0.02 * np.ptp(exact)


def test_the_mixture_for_quality(tmp_path: Path) -> None:
    checkpoint = TinyLlama(n_layers=3, tied=True, dtype="F32").write(tmp_path / "m")
    exact = logits(llmkit.convert(checkpoint, "onnx-fp32", output=tmp_path / "exact").path)
    mixed = llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "a", recipe="quality", tensor_types=["up=int8"])
    types = {t.name: t.type.name for t in mixed.plan.tensors}
    assert {types[f"blk.{i}.ffn_down.weight"] for i in (0, 2)} == {types["token_embd.weight"]} == {"INT8/64"}
    block = [types[f"blk.1.{name}.weight"] for name in ("attn_q", "attn_k", "attn_output", "ffn_up", "ffn_gate")]
    assert block == ["INT4/32Z", "INT8/64", "INT4/16Z", "INT8/32", "INT4/32Z"]
    plain = llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "b").path
    errors = [np.abs(logits(folder) - exact).mean() for folder in (mixed.path, plain)]
    assert errors[0] < 0.6 * errors[1]
    with pytest.raises(UnsupportedError, match="recipe 'quality' is one of onnx-int4, not of onnx-int8"):
        llmkit.convert(checkpoint, "onnx-int8", output=tmp_path / "c", recipe="quality")
    with pytest.raises(UnsupportedError, match="recipe 'best'; known for onnx-int4: quality"):
        llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "c", recipe="best")


def test_an_importance_matrix_moves_the_errors(smollm2_dithered: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and the day is long. " * 60)
    matrix = llmkit.compute_importance(
        smollm2_dithered, text, output=tmp_path / "imatrix.gguf", process_output=True, chunks=1
    ).path
    plain = llmkit.convert(smollm2_dithered, "onnx-int4", output=tmp_path / "plain", dry_run=True).plan
    weighed = llmkit.convert(smollm2_dithered, "onnx-int4", output=tmp_path / "w", dry_run=True, imatrix=matrix).plan
    for before, after in zip(plain.tensors, weighed.tensors, strict=True):
        assert before.importance is None
        assert (after.importance is not None) == (after.type == BlockwiseFormat(4, 32, symmetric=True)), after.name


def test_types_by_pattern(tmp_path: Path) -> None:
    checkpoint = TinyLlama().write(tmp_path / "m")
    plan = llmkit.convert(
        checkpoint,
        "onnx-int4",
        output=tmp_path / "o",
        tensor_types=["attn_output=int8/128z", "^output=float", r"blk\.1\.attn_v=int8", "ffn_gate_up=int8"],
        dry_run=True,
    ).plan
    (note,) = plan.notes
    assert "no tensor's name has 'ffn_gate_up' in it" in note
    types = {t.name: t.type.name for t in plan.tensors}
    assert types["blk.0.attn_output.weight"] == "INT8/128Z"
    assert types["output.weight"] == "F32"
    assert types["blk.0.ffn_down.weight"] == "INT4/32"
    # Apart only where the types are not the same.
    assert types["blk.0.attn_qkv.weight"] == "INT4/32"
    assert [types[f"blk.1.attn_{role}.weight"] for role in "qkv"] == ["INT4/32", "INT4/32", "INT8/32"]
    assert types["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 48}, "block size 48; ONNX Runtime has 16, 32"),
        ({"accuracy_level": 7}, "accuracy level 7"),
        ({"tensor_types": ["attn=q4_k"]}, "a type of int4, int8, float"),
        ({"tensor_types": ["(=int8"]}, "is not a regular expression"),
        ({"split_size": "1GB"}, "no other options"),
        ({"pure": True}, "no other options"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = TinyLlama().write(tmp_path / "m")
    with pytest.raises(UnsupportedError, match=message):
        llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / "o", **options)
    assert not (tmp_path / "o").exists()


def test_options_of_onnx_are_not_for_gguf(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="these are for ONNX"):
        llmkit.convert(TinyLlama().write(tmp_path / "m"), "gguf-q8_0", output=tmp_path / "o", block_size=32)


def test_names() -> None:
    assert find_onnx_recipe("q4").name == "int4"
    with pytest.raises(UnsupportedError, match="no operator for weights of 5 bits; take onnx-int4 or onnx-int8"):
        find_onnx_recipe("int5")
    with pytest.raises(UnsupportedError, match="known: onnx-fp32"):
        find_onnx_recipe("int3")
    assert parse_onnx_type("attn_v=INT8")[1] == OnnxType("int8")
    assert parse_onnx_type("a=b=int4/64z")[1] == OnnxType("int4", 64, symmetric=False)
    for wrong in ("float/32", "int8/", "int4/33", "int4z"):
        with pytest.raises(UnsupportedError):
            parse_onnx_type(f"x={wrong}")
    assert OnnxOptions().block_size is None


def test_a_family_without_a_graph(tmp_path: Path) -> None:
    checkpoint = TinyLlama().write(tmp_path / "m")
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"architectures": ["ArceeForCausalLM"], "model_type": "arcee", "hidden_act": "relu2"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(LlmkitError, match="llmkit has no graph of ArceeForCausalLM yet: convert it to GGUF"):
        llmkit.convert(checkpoint, "onnx-fp32", output=tmp_path / "o")


def test_the_same_bytes_by_any_number_of_threads(tmp_path: Path) -> None:
    checkpoint = TinyLlama().write(tmp_path / "m")
    for name, threads, memory in (("a", 1, "1GB"), ("b", 2, "200KB")):
        llmkit.convert(checkpoint, "onnx-int4", output=tmp_path / name, threads=threads, memory=memory)
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_embedding_whose_rows_are_no_whole_blocks(tmp_path: Path) -> None:
    checkpoint = TinyLlama(n_embd=192, n_heads=3, n_kv_heads=3, tied=True, dtype="F32").write(tmp_path / "m")
    exact = logits(llmkit.convert(checkpoint, "onnx-fp32", output=tmp_path / "a").path)
    result = llmkit.convert(checkpoint, "onnx-int8", output=tmp_path / "b", block_size=128, accuracy_level=1)
    types = {t.name: t.type.name for t in result.plan.tensors}
    assert types["token_embd.weight"] == "INT8/64"
    assert types["blk.0.attn_qkv.weight"] == "INT8/128"  # the operator of matrices fills up the last block
    (fallback,) = result.plan.fallbacks
    assert "rows of 192 weights are no whole blocks of 128" in fallback.reason
    assert np.abs(logits(result.path) - exact).max() < 0.02 * np.ptp(exact)
