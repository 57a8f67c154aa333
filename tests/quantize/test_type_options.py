"""Options for types: how they are written, what is refused, what falls back, and what a plan should note."""

from __future__ import annotations

import re

import pytest

from llmkit.errors import UnsupportedError
from llmkit.quantize.recipes import (
    RECIPES,
    WRITABLE_TYPES,
    Choice,
    ModelShape,
    TypeOptions,
    choose_types,
    find_recipe,
    parse_tensor_type,
    parse_type,
    unused_options,
)
from llmkit.quantize.schemes import SCHEMES, scheme
from llmkit.types import TensorType
from tests.quantize.modelzoo import tensor_list

T = TensorType
MODEL = ModelShape(2, 8, 8)


def _options(*texts: str) -> TypeOptions:
    return TypeOptions(tensor_types=tuple(parse_tensor_type(text) for text in texts))


def test_recipes_write_what_has_an_encoder() -> None:
    assert {type for type in SCHEMES if scheme(type).encoder is not None} == WRITABLE_TYPES
    assert {recipe.default for recipe in RECIPES.values()} <= WRITABLE_TYPES


@pytest.mark.parametrize("name", ["iq2_xs", "IQ3_M", "tq1_0", "nvfp4"])
def test_recipes_of_types_without_encoder_are_refused(name: str) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"llmkit reads but does not write {name.upper()}; known: f32, .*iq4_xs"
    ):
        find_recipe(name)


@pytest.mark.parametrize(("name", "recipe"), [("q3_k", "q3_k_m"), ("Q4_K", "q4_k_m"), ("q5_k", "q5_k_m")])
def test_names_that_llama_quantize_takes(name: str, recipe: str) -> None:
    assert find_recipe(name) is RECIPES[recipe]


def test_parse_tensor_type() -> None:
    pattern, type = parse_tensor_type(r"BLK\.\d+\.Attn_V=q8_0")
    assert type is T.Q8_0
    assert pattern.search("blk.12.attn_v.weight")
    assert not pattern.search("blk.x.attn_v.weight")
    # The last "=" separates: patterns may hold others.
    pattern, type = parse_tensor_type("attn_(?=v|k)=IQ4_XS")
    assert (pattern.pattern, type) == ("attn_(?=v|k)", T.IQ4_XS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("attn_v", r"tensor type 'attn_v': expected REGEX=TYPE, such as attn_v=q8_0"),
        ("=q8_0", r"tensor type '=q8_0': expected REGEX=TYPE"),
        ("attn_v=", r"tensor type 'attn_v=': expected REGEX=TYPE"),
        ("attn_(v=q8_0", r"tensor type 'attn_\(v=q8_0': 'attn_\(v' is no regular expression: .*unterminated"),
        ("blk.[[:digit:]]=q8_0", r"classes such as \[:digit:\] are not known here; write \\d"),
        ("attn_v=q9_0", r"unknown tensor type 'q9_0'; known: f32, f16, q4_0, .*mxfp4"),
        ("attn_v=iq2_xs", r"llmkit reads but does not write IQ2_XS; it writes f32, f16, q4_0"),
        ("attn_v=i32", r"llmkit does not write I32; it writes f32, f16, q4_0"),
    ],
)
def test_tensor_types_that_are_refused(text: str, problem: str) -> None:
    with pytest.raises(UnsupportedError, match=problem):
        parse_tensor_type(text)


@pytest.mark.parametrize(
    "options",
    [
        {"output_type": T.IQ3_S},
        {"token_embedding_type": T.IQ3_S},
        {"tensor_types": ((re.compile("a"), T.Q8_0), (re.compile("b"), T.IQ3_S))},
    ],
)
def test_options_with_types_without_encoder_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError, match="does not write IQ3_S"):
        TypeOptions(**options)  # type: ignore[arg-type]


def test_parse_type() -> None:
    assert parse_type("Q6_k") is T.Q6_K


def test_patterns_need_a_recipe_that_quantizes() -> None:
    with pytest.raises(UnsupportedError, match=r"attn_v=q8_0: types by pattern need a recipe that quantises, and f16"):
        choose_types(RECIPES["f16"], MODEL, tensor_list(2), options=_options("attn_v=q8_0"))


def test_choices_name_the_option_that_decided() -> None:
    options = TypeOptions(
        tensor_types=(parse_tensor_type("attn_v=q8_0"),), output_type=T.Q5_0, token_embedding_type=T.F16
    )
    choices = choose_types(RECIPES["q4_k_s"], MODEL, tensor_list(2), options=options)
    assert {name: choice.option for name, choice in choices.items() if choice.option} == {
        "token_embd.weight": "token embedding type f16",
        "output.weight": "output type q5_0",
        "blk.0.attn_v.weight": "attn_v=q8_0",
        "blk.1.attn_v.weight": "attn_v=q8_0",
    }
    assert unused_options(choices, options) == ()


def test_options_that_decide_nothing_are_noted() -> None:
    options = TypeOptions(
        pure=True,
        tensor_types=tuple(map(parse_tensor_type, ["down=q8_0", "ffn_down=q6_k", "attn_x=q8_0", "attn_norm=q8_0"])),
        output_type=T.Q6_K,
        token_embedding_type=T.Q6_K,
    )
    tensors = [tensor for tensor in tensor_list(2) if tensor[0] not in ("output.weight", "token_embd.weight")]
    choices = choose_types(RECIPES["q4_0"], MODEL, tensors, options=options)
    assert unused_options(choices, options) == (
        "ffn_down=q6_k was not used: blk.0.ffn_down.weight is not quantised, or another option decides",
        "attn_x=q8_0 was not used: no tensor has a name with that pattern",
        "attn_norm=q8_0 was not used: blk.0.attn_norm.weight is not quantised, or another option decides",
        "output type q6_k was not used: there is no output.weight, and other options decide",
        "token embedding type q6_k was not used: there is no token_embd.weight",
    )


# Where llama.cpp fails in the end, these options fall back like everything else.
@pytest.mark.parametrize(("asked", "got"), [(T.Q4_K, T.Q5_0), (T.IQ4_XS, T.IQ4_NL), (T.Q3_K, T.Q4_0), (T.Q6_K, T.Q8_0)])
def test_output_and_embedding_types_fall_back(asked: TensorType, got: TensorType) -> None:
    options = TypeOptions(output_type=asked, token_embedding_type=asked)
    choices = choose_types(RECIPES["q8_0"], MODEL, tensor_list(2, width=96), options=options)
    for name, label in (("output.weight", "output type"), ("token_embd.weight", "token embedding type")):
        option = f"{label} {asked.name.lower()}"
        assert choices[name] == Choice(got, asked, "rows of 96 weights are not a multiple of 256", option)


def test_rows_that_no_block_divides_become_float16() -> None:
    choices = choose_types(RECIPES["q4_k_s"], MODEL, tensor_list(2, width=80))
    assert choices["output.weight"] == Choice(T.F16, T.Q6_K, "rows of 80 weights are not a multiple of 256")
    choices = choose_types(RECIPES["q4_0"], MODEL, tensor_list(2, width=80))
    assert choices["blk.0.attn_q.weight"] == Choice(T.F16, T.Q4_0, "rows of 80 weights are not a multiple of 32")


def test_fallbacks_can_be_refused() -> None:
    refused = TypeOptions(fallback=False)
    assert choose_types(RECIPES["q4_k_m"], MODEL, tensor_list(2), options=refused) == choose_types(
        RECIPES["q4_k_m"], MODEL, tensor_list(2)
    )
    with pytest.raises(UnsupportedError) as caught:
        choose_types(RECIPES["q4_k_m"], MODEL, tensor_list(2, width=96), options=refused)
    lines = str(caught.value).splitlines()
    assert lines[0] == "16 tensors cannot have the type they should:"
    assert lines[1] == "  token_embd.weight: rows of 96 weights are not a multiple of 256, which Q4_K needs"
    assert lines[9:] == [
        "  and 8 more",
        "Allow fallbacks, take a type of blocks that divide these rows, or give these tensors a type by pattern",
    ]


def test_q2_k_s_without_an_importance_matrix_can_be_all_other_types() -> None:
    choices = choose_types(RECIPES["q2_k_s"], MODEL, tensor_list(2), options=_options("blk=q4_k"))
    assert not any(choice.needs_importance for choice in choices.values())


def test_experts_outside_the_blocks_are_refused() -> None:
    model = ModelShape(2, 8, 8, n_experts=4)
    for name in ("ffn_down_exps.weight", "blk.2.ffn_down_exps.weight"):
        with pytest.raises(UnsupportedError, match=rf"tensor '{name}': expected blk\.<i> with i below 2"):
            choose_types(RECIPES["q4_k_m"], model, [(name, (4, 64, 256))])


def test_plain_recipes_keep_vectors_norms_and_routers_in_float32() -> None:
    tensors = [
        ("token_embd.weight", (320, 256)),
        ("blk.0.attn_norm.weight", (256,)),
        ("blk.0.attn_q.bias", (256,)),
        ("blk.0.attn_q.weight", (256, 256)),
        ("blk.0.ffn_gate_inp.weight", (8, 256)),
        ("blk.0.per_layer_model_proj.weight", (8, 256)),
    ]
    names = [name for name, _ in tensors]
    chosen = choose_types(RECIPES["f16"], ModelShape(1, 4, 4), tensors)
    assert [chosen[name].type for name in names] == [T.F16, T.F32, T.F32, T.F16, T.F32, T.F16]
    chosen = choose_types(RECIPES["q8_0"], ModelShape(1, 4, 4), tensors)
    assert [chosen[name].type for name in names] == [T.Q8_0, T.F32, T.F32, T.Q8_0, T.F32, T.F32]
    kept = dict.fromkeys(names, T.BF16)
    chosen = choose_types(RECIPES["q8_0"], ModelShape(1, 4, 4), tensors, kept=kept)
    assert [chosen[name].type for name in names] == [T.Q8_0, T.BF16, T.BF16, T.Q8_0, T.BF16, T.BF16]
