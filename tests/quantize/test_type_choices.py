"""Every tensor gets the type that llama.cpp itself chooses: a table of models, and models drawn at random."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.quantize.recipes import RECIPES, WRITABLE_TYPES, ModelShape, TypeOptions, choose_types
from llmkit.quantize.recipes.tensors import file_order
from llmkit.types import BLOCK_LAYOUTS, TensorType
from tests.quantize.modelzoo import ATTENTION, EXPERTS, FFN, LAYER_COUNTS, MODELS, ODD_NAMES, TensorList, tensor_list
from tests.quantize.type_peer import KEPT, compute_types

T = TensorType


def _pattern(text: str, type: TensorType) -> tuple[re.Pattern[str], TensorType]:
    return re.compile(text, re.IGNORECASE), type


# Types of 16 bits fit any row: with others llama.cpp's output and embedding options do not look at the shape.
OPTIONS = {
    "none": TypeOptions(),
    "pure": TypeOptions(pure=True),
    "pure with patterns": TypeOptions(pure=True, tensor_types=(_pattern("attn_[kv]", T.Q8_0), _pattern("down", T.F16))),
    "patterns, the first wins": TypeOptions(
        tensor_types=(
            _pattern(r"BLK\.(0|2|1\d)\..*attn_v", T.IQ4_XS),
            _pattern("attn_v|attn_qkv", T.Q5_0),
            _pattern(r"^blk\.[1-3]\.ffn_(down|up)", T.Q2_K),
            _pattern("norm|bias|gate_inp|embd", T.Q4_K),
        )
    ),
    "output": TypeOptions(output_type=T.BF16),
    "output and a pattern": TypeOptions(output_type=T.BF16, tensor_types=(_pattern("output|embd", T.MXFP4),)),
    "output, pure": TypeOptions(output_type=T.F16, pure=True),
    "embedding": TypeOptions(token_embedding_type=T.BF16),
    "embedding and a pattern": TypeOptions(token_embedding_type=T.F16, tensor_types=(_pattern("embd", T.Q4_0),)),
    "embedding and output": TypeOptions(token_embedding_type=T.F16, output_type=T.F32),
}


def _assert_as_llama_cpp(model: ModelShape, tensors: TensorList, options: TypeOptions, recipes: list[str]) -> None:
    ordered = sorted(tensors, key=lambda tensor: file_order(tensor[0]))
    theirs = compute_types([RECIPES[name].file_type for name in recipes], model, ordered, options)
    kept = dict.fromkeys((name for name, _ in tensors), KEPT)
    for name, expected in zip(recipes, theirs, strict=True):
        # q2_k_s insists on an importance matrix, and none of its choices depends on it.
        choices = choose_types(RECIPES[name], model, tensors, kept=kept, options=options, has_imatrix=name == "q2_k_s")
        assert list(choices) == [tensor for tensor, _ in tensors]
        different = {n: (c.type, expected[n]) for n, c in choices.items() if c.type is not expected[n]}
        assert not different, name


def _recipes_for(options: TypeOptions) -> list[str]:
    """Patterns are refused for f32, f16 and bf16, where llama-quantize takes and ignores them."""
    return [name for name, recipe in RECIPES.items() if recipe.quantizes or not options.tensor_types]


@pytest.mark.parametrize("model", MODELS)
def test_models(model: str) -> None:
    shape, tensors = MODELS[model]
    for options in OPTIONS.values() if shape.n_layers < 20 else [TypeOptions()]:
        _assert_as_llama_cpp(shape, tensors, options, _recipes_for(options))


@pytest.mark.parametrize("n_layers", LAYER_COUNTS)
@pytest.mark.parametrize("architecture", ["llama", "falcon"])
def test_numbers_of_blocks(architecture: str, n_layers: int) -> None:
    model = ModelShape(n_layers, 8, 8, 0, architecture)
    parts = ("attn_v", "attn_output", "ffn_down")
    _assert_as_llama_cpp(model, tensor_list(n_layers, parts), TypeOptions(), _recipes_for(TypeOptions()))


def test_output_type_on_a_tied_embedding_falls_back() -> None:
    options = TypeOptions(output_type=T.Q4_K)
    _assert_as_llama_cpp(ModelShape(1, 8, 8), tensor_list(1, width=96, tied=True), options, _recipes_for(options))


# Which of the odd names are kept may depend on the architecture, so each is asked for by itself.
@pytest.mark.parametrize("architecture", ["llama", "falcon", "bert", "gemma3n", "glm5-next", "minimax-m3", "clip"])
def test_tensors_that_are_never_quantized(architecture: str) -> None:
    model = ModelShape(1, 8, 8, 0, architecture)
    shapes = [(64, 256), (1, 256), (2, 64, 256), (2, 1, 256), (1, 1), (256,)]
    for shape in shapes:
        tensors = [(name, shape) for name in (*ODD_NAMES, "weight", "blk.0.ffn_up.weight", "blk.0.ffn_up.weights")]
        _assert_as_llama_cpp(model, tensors, TypeOptions(), ["q4_k_m", "f16", "mxfp4_moe"])


# Left out: architectures that have 70B models beside llama, which the peer's stand-in for a model does not know.
ARCHITECTURES = ("llama", "falcon", "qwen3moe", "deepseek2", "gemma3", "bailingmoe3", "glm5-next", "bert", "gpt2")
PARTS = (*ATTENTION, *FFN, *EXPERTS, "attn_qkv", "attn_kv_b", "attn_q_a", "attn_k_b_exps", "ffn_down_shexp", "ssm_in")


@dataclass(frozen=True)
class Drawn:
    model: ModelShape
    tensors: TensorList
    options: TypeOptions


@st.composite
def drawn_models(draw: st.DrawFn) -> Drawn:
    n_layers = draw(st.one_of(st.integers(1, 24), st.sampled_from([32, 40, 60, 64, 80, 81])))
    n_kv_heads = draw(st.sampled_from([0, 1, 2, 3, 8]))
    n_experts = draw(st.sampled_from([0, 0, 1, 2, 4, 8, 8, 128]))
    width = draw(st.sampled_from([256, 512, 768, 64, 96, 80, 33]))
    model = ModelShape(
        n_layers, draw(st.sampled_from([8, 32])), n_kv_heads, n_experts, draw(st.sampled_from(ARCHITECTURES))
    )
    parts = draw(st.lists(st.sampled_from(PARTS), unique=True, max_size=10))
    whole = draw(st.lists(st.sampled_from(ODD_NAMES), unique=True, max_size=4))
    tensors = tensor_list(n_layers, parts, width=width, tied=draw(st.booleans()), n_experts=n_experts, whole=whole)
    # As in real models, not every block has every part; and a file may have them in any order.
    random = Random(draw(st.integers(0, 2**32)))
    tensors = [tensor for tensor in tensors if not tensor[0].startswith("blk.") or random.random() < 0.9]
    random.shuffle(tensors)
    # For these two llama.cpp does not look whether the type fits the rows, and fails later.
    fitting = st.none() | st.sampled_from(sorted(t for t in WRITABLE_TYPES if width % BLOCK_LAYOUTS[t].block_size == 0))
    texts = st.sampled_from(["attn_v", "ffn_down", r"blk\.\d\.", "output", "embd", "weight$", "attn_(q|k|v)", "exps"])
    pattern = st.builds(_pattern, texts, st.sampled_from(sorted(WRITABLE_TYPES)))
    options = TypeOptions(
        pure=draw(st.booleans()),
        tensor_types=tuple(draw(st.lists(pattern, max_size=3))),
        output_type=draw(fitting),
        token_embedding_type=draw(fitting),
    )
    return Drawn(model, tensors, options)


@settings(max_examples=60, deadline=None)
@given(drawn_models())
def test_drawn_models(drawn: Drawn) -> None:
    _assert_as_llama_cpp(drawn.model, drawn.tensors, drawn.options, _recipes_for(drawn.options))
