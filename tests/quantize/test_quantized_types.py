"""The types in files that llama.cpp quantises, with and without an importance matrix, are those that recipes choose."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from llmkit.errors import UnsupportedError
from llmkit.quantize.recipes import RECIPES, ModelShape, TypeOptions, choose_types
from llmkit.types import TensorType
from tests.quantize.modelzoo import ATTENTION, EXPERTS, TensorList, model, old_mixtral, tensor_list
from tests.quantize.type_peer import types_of_quantized_file, write_zeros

T = TensorType

_KEY_PARTS = ("attn_v", "attn_output", "ffn_down")
MODELS: dict[str, tuple[ModelShape, TensorList]] = {
    **{f"{n} blocks": (model(n), tensor_list(n, _KEY_PARTS)) for n in (1, 7, 8, 9, 16, 17, 33)},
    "rows of 96": (model(16, gqa=4), tensor_list(16, width=96)),
    "rows of 80, tied": (model(8), tensor_list(8, width=80, tied=True)),
    "falcon": (model(32, "falcon", gqa=8), tensor_list(32, ("attn_qkv", "attn_output", "ffn_up", "ffn_down"))),
    "eight experts": (model(16, gqa=4, n_experts=8), tensor_list(16, (*ATTENTION, *EXPERTS), n_experts=8)),
    "eight experts apart": (model(9, gqa=4, n_experts=8), old_mixtral(9)),
    "sixteen experts": (
        model(16, "qwen3moe", gqa=2, n_experts=16),
        tensor_list(16, (*ATTENTION, *EXPERTS), n_experts=16),
    ),
}

OPTIONS = {
    "none": TypeOptions(),
    "pure": TypeOptions(pure=True),
    "all": TypeOptions(
        tensor_types=(
            (re.compile(r"blk\.(1|11)\..*(_v|_down)"), T.Q5_1),
            (re.compile("down|OUTPUT", re.IGNORECASE), T.IQ4_XS),
        ),
        output_type=T.BF16,
        token_embedding_type=T.F16,
    ),
}
QUANTIZING = [name for name, recipe in RECIPES.items() if recipe.quantizes]


def _assert_same_types(
    folder: Path, model: ModelShape, tensors: TensorList, recipes: list[str], options: TypeOptions, has_imatrix: bool
) -> None:
    source, target = folder / "zeros.gguf", folder / "quantized.gguf"
    # Matrices of two rows, for speed; any order, as the file's must not matter.
    tensors = [(name, shape if len(shape) == 1 else (*shape[:-2], 2, shape[-1])) for name, shape in tensors]
    Random(0).shuffle(tensors)
    write_zeros(source, model, tensors)
    kept = dict.fromkeys((name for name, _ in tensors), T.F32)
    for name in recipes:
        theirs = types_of_quantized_file(
            source, target, RECIPES[name].file_type, options, tensors if has_imatrix else []
        )
        ours = choose_types(RECIPES[name], model, tensors, kept=kept, options=options, has_imatrix=has_imatrix)
        different = {n: (c.type, theirs[n]) for n, c in ours.items() if c.type is not theirs[n]}
        assert not different, name


@pytest.mark.parametrize("has_imatrix", [False, True], ids=["without imatrix", "with imatrix"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", MODELS)
def test_types_in_quantized_files(case: str, options: str, has_imatrix: bool, tmp_path: Path) -> None:
    recipes = [name for name in QUANTIZING if name != "q2_k_s" or has_imatrix]
    _assert_same_types(tmp_path, *MODELS[case], recipes, OPTIONS[options], has_imatrix)


# Each architecture knows for itself which numbers of blocks make a 70B model.
@pytest.mark.parametrize("gqa", [1, 8])
@pytest.mark.parametrize("n_layers", [68, 80])
@pytest.mark.parametrize("architecture", ["llama", "llama-embed", "qwen2", "deci", "olmo", "jais2", "qwen3"])
def test_70b_models(architecture: str, n_layers: int, gqa: int, tmp_path: Path) -> None:
    shape, tensors = model(n_layers, architecture, gqa=gqa), tensor_list(n_layers, ["attn_v"])
    _assert_same_types(tmp_path, shape, tensors, ["q2_k", "q3_k_s", "q4_k_m"], TypeOptions(), has_imatrix=False)


def test_projectors(tmp_path: Path) -> None:
    """Files of architecture clip; llama-quantize reads no numbers of blocks and heads from them."""
    shape = ModelShape(0, 0, 0, architecture="clip")
    parts = ("attn_q", "attn_v", "attn_out", "ffn_up", "ffn_down")
    tensors = tensor_list(12, parts, prefix="v.", whole=("mm.0.weight", "v.position_embd.weight"))
    recipes = ["q8_0", "q5_k_m", "q4_k_m", "q4_k_s", "q3_k_m", "q4_0"]
    _assert_same_types(tmp_path, shape, tensors, recipes, TypeOptions(), has_imatrix=False)


@pytest.mark.parametrize("name", ["f16", "bf16", "f32"])
def test_recipes_that_do_not_quantize(name: str, tmp_path: Path) -> None:
    shape, tensors = model(2, n_experts=4), tensor_list(2, (*ATTENTION, *EXPERTS), n_experts=4)
    _assert_same_types(tmp_path, shape, tensors, [name], TypeOptions(token_embedding_type=T.Q8_0), has_imatrix=False)


def test_files_of_q2_k_s_need_an_importance_matrix(tmp_path: Path) -> None:
    shape, tensors = model(1), tensor_list(1)
    with pytest.raises(UnsupportedError, match=r"q2_k_s needs an importance matrix \(for tensor 'blk\.0\.attn_q"):
        choose_types(RECIPES["q2_k_s"], shape, tensors)
    with pytest.raises(AssertionError, match="llama_model_quantize returned 1"):
        _quantize_to_q2_k_s(tmp_path, shape, tensors)
    choices = choose_types(RECIPES["q2_k_s"], shape, tensors, has_imatrix=True)
    assert {name for name, choice in choices.items() if choice.needs_importance} == {
        name for name, choice in choices.items() if choice.type is T.Q2_K and name != "token_embd.weight"
    }


def _quantize_to_q2_k_s(folder: Path, model: ModelShape, tensors: TensorList) -> None:
    write_zeros(folder / "zeros.gguf", model, tensors)
    file_type = RECIPES["q2_k_s"].file_type
    types_of_quantized_file(folder / "zeros.gguf", folder / "quantized.gguf", file_type, TypeOptions(), [])
