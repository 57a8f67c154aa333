"""Qwen, SmolLM3 and the mixtures: the defaults of their configs, what is noted, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.convert.archs import ConfigReader, Family, HParams, find_family
from llmkit.convert.gguf_keys import architecture_metadata
from llmkit.errors import FormatError, LlmkitError, UnsupportedError

# What every config.json states; sizes that fit every family's defaults.
STATED: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "vocab_size": 320,
}
# Qwen3-MoE's default does not make the weights of the chosen experts add up to 1, but its published configs do.
FAMILIES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {},
    "OlmoeForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen2MoeForCausalLM": {},
    "Qwen3ForCausalLM": {},
    "Qwen3MoeForCausalLM": {"norm_topk_prob": True},
    "SmolLM3ForCausalLM": {},
}


def family_and_config(architecture: str, changes: dict[str, Any]) -> tuple[Family, ConfigReader]:
    values = {"architectures": [architecture], **STATED, **FAMILIES[architecture], **changes}
    config = ConfigReader(Path("config.json"), {key: value for key, value in values.items() if value is not ...})
    return find_family(config), config


def read(architecture: str, **changes: Any) -> HParams:
    family, config = family_and_config(architecture, changes)
    return family.read_hparams(config)


def notes(architecture: str, **changes: Any) -> tuple[str, ...]:
    family, config = family_and_config(architecture, changes)
    return family.notes(config, family.read_hparams(config))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_defaults_are_those_of_transformers(architecture: str) -> None:
    import transformers

    theirs = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(**STATED)
    h = read(architecture)
    assert h.n_kv_heads == theirs.num_key_value_heads
    assert h.head_dim == (getattr(theirs, "head_dim", None) or 32)
    assert h.n_context == theirs.max_position_embeddings
    assert h.rms_eps == theirs.rms_norm_eps
    assert h.rope is not None
    assert (h.rope.theta, h.rope.scaling) == (theirs.rope_parameters["rope_theta"], theirs.rope_parameters["rope_type"])
    assert h.tied_embeddings == theirs.tie_word_embeddings
    assert (h.experts is not None) == hasattr(theirs, "num_experts_per_tok")
    if h.experts is not None:
        assert h.experts.n_experts == getattr(theirs, "num_local_experts", None) or theirs.num_experts
        assert h.experts.n_used == theirs.num_experts_per_tok
        assert h.experts.n_ff == getattr(theirs, "moe_intermediate_size", None)
        assert h.experts.n_ff_shared == getattr(theirs, "shared_expert_intermediate_size", None)


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "OlmoeForCausalLM", "Qwen3MoeForCausalLM"])
def test_the_number_of_experts_has_two_names(architecture: str, key: str) -> None:
    experts = read(architecture, **{key: 11}).experts
    assert experts is not None
    assert experts.n_experts == 11


REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "qwen2: narrow heads": (
        "Qwen2ForCausalLM",
        {"head_dim": 16},
        ["head_dim is 16", "num_attention_heads"],
    ),
    "qwen3: biases": ("Qwen3ForCausalLM", {"attention_bias": True}, ["attention_bias is True", "False only"]),
    "qwen3_moe: biases": ("Qwen3MoeForCausalLM", {"attention_bias": True}, ["attention_bias is True"]),
    "qwen3_moe: weights as they are": (
        "Qwen3MoeForCausalLM",
        {"norm_topk_prob": ...},
        ["norm_topk_prob is False", "True only"],
    ),
    "qwen3_moe: MLPs in between": (
        "Qwen3MoeForCausalLM",
        {"decoder_sparse_step": 2},
        ["decoder_sparse_step is 2", "1 only"],
    ),
    "qwen3_moe: MLPs by number": (
        "Qwen3MoeForCausalLM",
        {"mlp_only_layers": [0, 7]},
        ["mlp_only_layers is [0, 7]", "experts in every block"],
    ),
    "qwen2_moe: MLPs by number": ("Qwen2MoeForCausalLM", {"mlp_only_layers": [7]}, ["mlp_only_layers is [7]"]),
    "qwen2_moe: weights made 1": ("Qwen2MoeForCausalLM", {"norm_topk_prob": True}, ["norm_topk_prob is True"]),
    "qwen2_moe: tied": ("Qwen2MoeForCausalLM", {"tie_word_embeddings": True}, ["tie_word_embeddings is True"]),
    "qwen2_moe: wide heads": ("Qwen2MoeForCausalLM", {"head_dim": 128}, ["head_dim is 128"]),
    "olmoe: clipped": ("OlmoeForCausalLM", {"clip_qkv": 8.0}, ["clip_qkv is 8.0", "None only"]),
    "olmoe: shared keys": ("OlmoeForCausalLM", {"num_key_value_heads": 8}, ["num_key_value_heads is 8", "32 only"]),
    "olmoe: biases": ("OlmoeForCausalLM", {"attention_bias": True}, ["attention_bias is True"]),
    "olmoe: tied": ("OlmoeForCausalLM", {"tie_word_embeddings": True}, ["tie_word_embeddings is True"]),
    "olmoe: weights made 1": ("OlmoeForCausalLM", {"norm_topk_prob": True}, ["norm_topk_prob is True"]),
    "smollm3: biases": ("SmolLM3ForCausalLM", {"attention_bias": True}, ["attention_bias is True"]),
    "smollm3: biases of the MLP": ("SmolLM3ForCausalLM", {"mlp_bias": True}, ["mlp_bias is True"]),
    "smollm3: every third": (
        "SmolLM3ForCausalLM",
        {"no_rope_layer_interval": 3},
        ["no_rope_layer_interval is 3", "4 only"],
    ),
    "smollm3: other blocks": (
        "SmolLM3ForCausalLM",
        {"no_rope_layers": [1, 1, 0, 1, 1, 1, 0, 1]},
        ["no_rope_layers is [1, 1, 0, 1, ", "every 4th place"],
    ),
    "smollm3: too few blocks": ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 1, 1, 0]}, ["no_rope_layers is"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_graph_does_not_compute_is_refused(case: str) -> None:
    architecture, changes, words = REFUSED[case]
    with pytest.raises(UnsupportedError) as caught:
        read(architecture, **changes)
    for word in ("config.json", *words):
        assert word in str(caught.value)


def test_what_the_graph_computes_is_not() -> None:
    assert read("Qwen3MoeForCausalLM", mlp_only_layers=[], decoder_sparse_step=1).experts
    assert read("Qwen2MoeForCausalLM", mlp_only_layers=[8, 20]).experts  # of a deeper model that was cut
    assert read("Qwen2MoeForCausalLM", qkv_bias=False).attention_bias is False
    assert read("SmolLM3ForCausalLM", no_rope_layers=[1, 1, 1, 0] * 9, no_rope_layer_interval=2)  # the list counts
    assert read("OlmoeForCausalLM", clip_qkv=None, num_key_value_heads=None)


def test_more_experts_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(FormatError, match="num_experts_per_tok 9 is more than num_local_experts 8"):
        read("MixtralForCausalLM", num_local_experts=8, num_experts_per_tok=9)


@pytest.mark.parametrize("architecture", sorted(set(FAMILIES) - {"MixtralForCausalLM"}))
def test_frequency_factors_need_a_graph_that_loads_them(architecture: str) -> None:
    """llama.cpp does not load a file with a tensor that the architecture lacks; the `llama` graph has it."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    family, config = family_and_config(architecture, {"rope_scaling": scaling})
    with pytest.raises(
        UnsupportedError, match=f"'llama3', which llama.cpp does not compute for {family.model_type[:5]}"
    ):
        architecture_metadata(family.gguf_architecture, family.read_hparams(config), [])
    family, config = family_and_config("MixtralForCausalLM", {"rope_scaling": scaling})
    assert architecture_metadata(family.gguf_architecture, family.read_hparams(config), [])


SLIDING = {"use_sliding_window": True, "sliding_window": 1000}


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("Qwen2ForCausalLM", {**SLIDING, "max_window_layers": 4}),
        ("Qwen2ForCausalLM", {**SLIDING, "layer_types": ["full_attention"] * 7 + ["sliding_attention"]}),
        ("Qwen3ForCausalLM", {**SLIDING, "max_window_layers": 0}),
        ("Qwen2MoeForCausalLM", SLIDING),
        ("Qwen3MoeForCausalLM", SLIDING),
        ("SmolLM3ForCausalLM", SLIDING),
        ("MixtralForCausalLM", {"sliding_window": 1000}),
    ],
)
def test_a_window_that_slides_is_noted(architecture: str, config: dict[str, Any]) -> None:
    assert notes(architecture, **config) == (
        "sliding_window 1000 is not carried over: llama.cpp attends to the whole context",
    )


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("Qwen2ForCausalLM", {"sliding_window": 1000, "max_window_layers": 4}),  # as published: it is not in use
        ("Qwen2ForCausalLM", {**SLIDING, "max_window_layers": 8}),
        ("Qwen2ForCausalLM", SLIDING),  # the 28 blocks before the first that slides are more than there are
        ("Qwen3ForCausalLM", {**SLIDING, "layer_types": ["full_attention"] * 8}),
        ("Qwen3MoeForCausalLM", {"sliding_window": 1000}),
        ("Qwen3MoeForCausalLM", {"use_sliding_window": True, "sliding_window": 32768}),
        ("SmolLM3ForCausalLM", {"use_sliding_window": True}),
        ("MixtralForCausalLM", {}),
    ],
)
def test_a_window_that_does_not_is_not(architecture: str, config: dict[str, Any]) -> None:
    assert notes(architecture, **config) == ()


KEYS = (
    *("num_key_value_heads", "head_dim", "norm_topk_prob", "attention_bias", "clip_qkv", "tie_word_embeddings"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "mlp_only_layers"),
    *("decoder_sparse_step", "no_rope_layers", "no_rope_layer_interval", "num_experts", "num_local_experts"),
    *("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "qkv_bias"),
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 5),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.one_of(st.integers(0, 2), st.text(max_size=2), st.none()), max_size=9),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    st.sampled_from([10**400, [[]], ["sliding_attention"]]),
)


@given(st.sampled_from(sorted(FAMILIES)), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
@settings(max_examples=500)
def test_any_config_is_read_or_refused(architecture: str, changes: dict[str, Any]) -> None:
    with suppress(LlmkitError):
        notes(architecture, **changes)
