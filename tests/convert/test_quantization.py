"""Plans from GGUF to GGUF: what is kept, what is completed, and what is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmkit
from llmkit.convert.gguf_source import open_source
from llmkit.convert.plan import ConversionPlan
from llmkit.convert.quantization import plan_quantize
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, array, f32, i32, open_gguf, plan_layout, string, u32
from llmkit.formats.gguf.values import ValueType
from llmkit.quantize.recipes import RECIPES, TypeOptions, find_recipe
from llmkit.types import BLOCK_LAYOUTS, TensorType
from tests.tinygguf import TinyGGUF, write_ones

T = TensorType
METADATA: dict[str, Value] = {
    "general.architecture": string("hydra"),  # an architecture that nobody knows
    "hydra.block_count": u32(1),
    "hydra.attention.head_count": u32(4),
}


ALL_Q4_K = TypeOptions(pure=True)


def plan(path: Path, recipe: str = "q4_k_m", **options: Any) -> ConversionPlan:
    return plan_quantize(open_source(path), find_recipe(recipe), **options)


def types(made: ConversionPlan) -> dict[str, str]:
    return {tensor.name: tensor.type.name for tensor in made.tensors}


def test_the_metadata_is_kept_in_order_and_completed(tmp_path: Path) -> None:
    metadata = METADATA | {
        "general.file_type": u32(1),
        "general.quantization_version": u32(1),
        "hydra.heads": array(ValueType.INT32, [1, 2]),
        "quantize.imatrix.file": string("of an earlier file"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, ["a", b"\xff"]),
    }
    path = write_ones(tmp_path / "in.gguf", metadata, {"blk.0.attn_q.weight": (T.F32, (2, 256))})
    result = llmkit.quantize(path, "q4_k_m", output=tmp_path / "out.gguf")
    with open_gguf(result.path) as file:
        kept = [key for key in metadata if not key.startswith(("general.f", "general.q", "quantize."))]
        assert list(file.metadata) == [*kept, "general.quantization_version", "general.file_type"]
        assert all(file.metadata[key] == metadata[key] for key in kept)
        assert (file.get("general.file_type"), file.get("general.quantization_version")) == (15, 2)


def test_tensors_come_in_llama_quantizes_order(tmp_path: Path) -> None:
    names = ["blk.10.a.weight", "token_embd.weight", "blk.2.b.weight", "output.weight", "blk.2.a.weight"]
    path = write_ones(tmp_path / "in.gguf", METADATA, dict.fromkeys(names, (T.F32, (2, 256))))
    assert list(types(plan(path))) == [
        "output.weight",
        "token_embd.weight",
        "blk.2.a.weight",
        "blk.2.b.weight",
        "blk.10.a.weight",
    ]


def test_what_is_not_quantised_keeps_type_and_bytes(tmp_path: Path) -> None:
    tensors = {
        "blk.0.attn_norm.weight": (T.F16, (256,)),
        "blk.0.ffn_gate_inp.weight": (T.BF16, (4, 256)),
        "blk.0.attn_q.bias": (T.F32, (256,)),
        "blk.0.table.weight": (T.I32, (4, 256)),
        "blk.0.wide.weight": (T.F64, (4, 256)),
        "blk.0.scalar": (T.F32, ()),
        "blk.0.attn_q.weight": (T.F32, (3, 256)),
    }
    path = write_ones(tmp_path / "in.gguf", METADATA, tensors)
    result = llmkit.quantize(path, "q4_k_m", output=tmp_path / "out.gguf", verify=True)
    with open_gguf(path) as before, open_gguf(result.path) as after:
        for name, (type, shape) in tensors.items():
            assert after.tensors[name].shape == shape
            if name != "blk.0.attn_q.weight":
                assert after.tensors[name].dtype == type.name
                assert np.array_equal(after.raw(name), before.raw(name))
        assert after.tensors["blk.0.attn_q.weight"].dtype == "Q4_K"


def test_shapes_that_types_do_not_fit(tmp_path: Path) -> None:
    """Rows that no block divides become float16, and a tensor without weights takes no bytes: both as stated."""
    tensors = {
        "blk.0.attn_q.weight": (T.F32, (3, 100)),
        "blk.0.attn_k.weight": (T.F32, (3, 96)),
        "blk.0.attn_v.weight": (T.F32, (0, 256)),
        "blk.0.ffn_up.weight": (T.F32, (4, 0)),
        "blk.0.ffn_up_exps.weight": (T.F32, (2, 3, 256)),
    }
    path = write_ones(tmp_path / "in.gguf", METADATA, tensors)
    result = llmkit.quantize(path, "q4_k_s", output=tmp_path / "out.gguf", verify=True)
    found = {t.name: (t.type.name, t.nbytes, t.reason) for t in result.plan.tensors}
    assert found["blk.0.attn_q.weight"] == ("F16", 600, "rows of 100 weights are not a multiple of 256")
    assert found["blk.0.attn_k.weight"][0] == "Q5_0"
    assert found["blk.0.attn_v.weight"][1] == found["blk.0.ffn_up.weight"][1] == 0
    assert found["blk.0.ffn_up_exps.weight"][0] == "Q4_K"
    with open_gguf(result.path) as file:
        assert {name: tensor.shape for name, tensor in file.tensors.items()} == {n: s for n, (_, s) in tensors.items()}
    assert result.to_dict()["parameters"] == 300 + 288 + 2 * 3 * 256


@pytest.mark.parametrize("tensors", [{}, {"blk.0.attn_q.weight": (T.F32, (0, 256))}], ids=["none", "an empty one"])
def test_a_file_without_weights(tensors: dict[str, Any], tmp_path: Path) -> None:
    path = write_ones(tmp_path / "in.gguf", METADATA, tensors)
    result = llmkit.quantize(path, "q4_k_m", output=tmp_path / "out.gguf", verify=True)
    assert result.plan.bits_per_weight == 0
    with open_gguf(result.path) as file:
        assert list(file.tensors) == list(tensors)


def test_an_alignment_of_its_own_is_kept(tmp_path: Path) -> None:
    metadata = METADATA | {"general.alignment": u32(256)}
    tensors = [("blk.0.attn_q.weight", T.F32, (1, 256)), ("blk.0.attn_k.weight", T.F32, (1, 256))]
    layout = plan_layout(metadata, tensors, 256)
    (tmp_path / "in.gguf").write_bytes(layout.header + bytes(layout.total_bytes - len(layout.header)))
    result = llmkit.quantize(tmp_path / "in.gguf", "q8_0", output=tmp_path / "out.gguf")
    with open_gguf(result.path) as file:
        assert file.alignment == 256
        assert all(tensor.offset % 256 == 0 for tensor in file.tensors.values())


def test_heads_may_be_stated_per_block(tmp_path: Path) -> None:
    """q2_k gives attn_v more bits where at least four heads share it: those of the first block tell."""
    for kv_heads, type in ((array(ValueType.INT32, [1, 4]), "Q4_K"), (array(ValueType.INT32, [4, 1]), "Q3_K")):
        metadata = METADATA | {"hydra.attention.head_count_kv": kv_heads}
        path = write_ones(tmp_path / "in.gguf", metadata, {"blk.0.attn_v.weight": (T.F32, (2, 256))})
        assert types(plan(path, "q2_k")) == {"blk.0.attn_v.weight": type}


def test_projectors_tell_no_numbers_of_blocks_and_heads(tmp_path: Path) -> None:
    metadata = {"general.architecture": string("clip"), "clip.vision.block_count": u32(1)}
    path = write_ones(tmp_path / "in.gguf", metadata, {"v.blk.0.ffn_down.weight": (T.F32, (2, 256))})
    assert types(plan(path)) == {"v.blk.0.ffn_down.weight": "Q6_K"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": None}, r"general.architecture is missing, expected a text"),
        ({"general.architecture": u32(1)}, r"general.architecture is 1, expected a text"),
        ({"hydra.block_count": None}, r"hydra.block_count is missing, expected a count"),
        ({"hydra.block_count": f32(2.5)}, r"hydra.block_count is 2.5, expected a count"),
        ({"hydra.block_count": i32(-1)}, r"hydra.block_count is -1, expected a count"),
        ({"hydra.attention.head_count": array(ValueType.STRING, ["x"])}, r"head_count is 'x', expected a count"),
        ({"hydra.expert_count": array(ValueType.INT32, [])}, r"expert_count is \(\), expected a count"),
    ],
)
def test_metadata_that_the_choices_need(change: dict[str, Value | None], words: str, tmp_path: Path) -> None:
    metadata = {key: value for key, value in (METADATA | change).items() if value is not None}
    path = write_ones(tmp_path / "in.gguf", metadata, {"blk.0.attn_q.weight": (T.F32, (2, 256))})
    with pytest.raises(FormatError, match=rf"in.gguf: metadata .*{words}"):
        plan(path)


def test_tensors_that_are_quantised_already(tmp_path: Path) -> None:
    tensors = {
        "blk.0.attn_q.weight": (T.Q8_0, (2, 256)),
        "blk.0.attn_k.weight": (T.IQ2_XS, (2, 256)),
        "blk.0.attn_v.weight": (T.Q4_K, (2, 256)),
        "blk.0.ffn_up.weight": (T.BF16, (2, 256)),
    }
    path = write_ones(tmp_path / "in.gguf", METADATA, tensors)
    with pytest.raises(
        UnsupportedError,
        match=r"in.gguf: 2 tensors are quantised already \(1 of \w+, 1 of \w+\).* F32, F16 or BF16 .*--allow-req",
    ):
        plan(path, "q4_k_s", options=ALL_Q4_K)
    made = plan(path, "q4_k_s", options=ALL_Q4_K, allow_requantize=True)
    assert any("2 tensors are quantised already" in note for note in made.notes)
    assert {t.name: t.is_copied for t in made.tensors} == {name: type is T.Q4_K for name, (type, _) in tensors.items()}


def test_a_type_without_scheme_is_copied_but_not_changed(tmp_path: Path) -> None:
    path = write_ones(tmp_path / "in.gguf", METADATA, {"blk.0.attn_q.weight": (T.Q8_1, (2, 256))})
    with pytest.raises(UnsupportedError, match=r"'blk.0.attn_q.weight' is to go from Q8_1 to Q4_K, and Q8_1 is not"):
        plan(path, allow_requantize=True)
    norm = write_ones(tmp_path / "norm.gguf", METADATA, {"blk.0.attn_q_norm.weight": (T.Q8_1, (2, 256))})
    result = llmkit.quantize(norm, "q4_k_m", output=tmp_path / "out.gguf", verify=True)
    assert types(result.plan) == {"blk.0.attn_q_norm.weight": "Q8_1"}


def test_what_fits_one_file_is_not_split(tmp_path: Path) -> None:
    source = TinyGGUF(n_layers=1).write(tmp_path / "in.gguf")
    whole = llmkit.quantize(source, "q8_0", output=tmp_path / "a.gguf")
    (path,) = llmkit.quantize(source, "q8_0", output=tmp_path / "b.gguf", split_size="2GB").paths
    assert path == tmp_path / "b.gguf"
    assert path.read_bytes() == whole.path.read_bytes()


def test_more_parts_than_can_be_counted(tmp_path: Path) -> None:
    tensors = {f"blk.0.{i}.weight": (T.F32, (1, 32)) for i in range(65_536)}
    path = write_ones(tmp_path / "in.gguf", METADATA, tensors)
    with pytest.raises(UnsupportedError, match="65,536 files; a split model has at most 65,535"):
        plan(path, "q8_0", split_size=1)


SIZES = st.sampled_from([0, 1, 2, 5, 31, 32, 64, 96, 255, 256, 512])
NAMES = st.sampled_from(
    [
        *("token_embd.weight", "output.weight", "output_norm.weight", "blk.0.ffn_down.weight", "blk.0.attn_v.weight"),
        *("blk.0.attn_q.bias", "blk.1.attn_q.weight", "blk.9.ffn_up_exps.weight", "blk.0.ffn_gate_inp.weight", "x"),
    ]
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[TensorType, tuple[int, ...]]]:
    found = {}
    for name in draw(st.sets(NAMES, min_size=1)):
        type = draw(st.sampled_from([T.F32, T.F16, T.BF16, T.I32, T.F64, T.Q8_0, T.Q4_K]))
        leading = draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3))
        block = BLOCK_LAYOUTS[type].block_size
        found[name] = (type, (*leading, draw(SIZES) // block * block))
    return found


@given(tensors(), st.sampled_from(sorted(RECIPES)), st.sampled_from([None, 1000, 10_000]))
def test_whatever_the_tensors_are_the_output_has_them_all(
    tensors: dict[str, tuple[TensorType, tuple[int, ...]]], recipe: str, split_size: int | None
) -> None:
    if recipe == "q2_k_s":
        recipe = "q2_k"  # which needs no importance matrix
    with tempfile.TemporaryDirectory() as folder:
        path = write_ones(Path(folder) / "in.gguf", METADATA, tensors)
        output = Path(folder) / "out.gguf"
        result = llmkit.quantize(
            path, recipe, output=output, allow_requantize=True, split_size=split_size, verify=True, threads=1
        )
        written = open_source(result.path)
        assert {t.name: t.shape for t in written.tensors} == {name: shape for name, (_, shape) in tensors.items()}
        assert {t.name: t.dtype for t in written.tensors} == types(result.plan)
        assert sum(p.stat().st_size for p in result.paths) == result.plan.total_bytes
