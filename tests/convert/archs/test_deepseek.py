"""DeepSeek's hyper-parameters from config.json, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.convert.archs import ConfigReader, Family, HParams, deepseek_v2, deepseek_v3
from llmkit.errors import FormatError, LlmkitError, UnsupportedError

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "num_experts_per_tok": 2,
    "n_routed_experts": 16,
}


def read(family: Family, **changes: Any) -> tuple[HParams, tuple[str, ...]]:
    config = ConfigReader(Path("config.json"), {**SIZES, **changes})
    hparams = family.read_hparams(config)
    return hparams, family.notes(config, hparams)


def extra(hparams: HParams) -> dict[str, Any]:
    return {key: value.data for key, value in hparams.extra.items()}


def test_defaults_are_those_of_transformers() -> None:
    from transformers import DeepseekV2Config, DeepseekV3Config

    for family, make in ((deepseek_v2.FAMILY, DeepseekV2Config), (deepseek_v3.FAMILY, DeepseekV3Config)):
        hparams, _ = read(family)
        theirs = make(**SIZES)
        assert hparams.latent is not None
        assert hparams.experts is not None
        assert (hparams.latent.q_rank, hparams.latent.kv_rank) == (theirs.q_lora_rank, theirs.kv_lora_rank)
        assert (hparams.latent.n_keys, hparams.latent.n_values) == (theirs.qk_head_dim, theirs.v_head_dim)
        assert hparams.head_dim == theirs.qk_rope_head_dim
        assert hparams.n_context == theirs.max_position_embeddings
        assert hparams.experts.n_ff == theirs.moe_intermediate_size
        assert hparams.experts.n_shared == theirs.n_shared_experts
        assert hparams.experts.n_dense_layers == theirs.first_k_dense_replace
        assert hparams.experts.weights_scale == theirs.routed_scaling_factor
        assert bool(hparams.experts.weights_norm) == theirs.norm_topk_prob


def test_a_rank_of_null_is_stated_as_zero() -> None:
    hparams, _ = read(deepseek_v2.FAMILY, q_lora_rank=None)
    assert hparams.latent is not None
    assert hparams.latent.q_rank is None
    assert extra(hparams)["attention.q_lora_rank"] == 0


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({"n_group": 4, "topk_group": 2}, (4, 2)),
        ({"n_group": 1, "topk_group": 1}, (1, 1)),
        ({"n_group": 4, "topk_group": 4}, (1, 1)),  # llama.cpp aborts on as many groups as there are
    ],
)
def test_groups_of_experts(changes: dict[str, int], groups: tuple[int, int]) -> None:
    found = extra(read(deepseek_v3.FAMILY, **changes)[0])
    assert (found["expert_group_count"], found["expert_group_used_count"]) == groups


def test_groups_are_for_the_method_that_uses_them() -> None:
    greedy, notes = read(deepseek_v2.FAMILY, topk_method="greedy", n_group=4, topk_group=2)
    assert "expert_group_count" not in greedy.extra
    assert not notes
    limited, notes = read(deepseek_v2.FAMILY, topk_method="group_limited_greedy", n_group=4, topk_group=2)
    assert extra(limited)["expert_group_count"] == 4
    assert "group_limited_greedy" in notes[0]


REFUSED: dict[str, tuple[Callable[[], Any], type[LlmkitError], list[str]]] = {
    "another router": (
        lambda: read(deepseek_v3.FAMILY, scoring_func="softmax"),
        LlmkitError,
        ["scoring_func", "'softmax'"],
    ),
    "weights that add up to 1": (lambda: read(deepseek_v2.FAMILY, norm_topk_prob=True), UnsupportedError, ["norm_top"]),
    "grouped keys": (
        lambda: read(deepseek_v3.FAMILY, num_key_value_heads=2),
        FormatError,
        ["num_key_value_heads 2", "num_attention_heads 4"],
    ),
    "halves rotated": (lambda: read(deepseek_v3.FAMILY, rope_interleave=False), UnsupportedError, ["rope_interleave"]),
    "groups that do not divide": (
        lambda: read(deepseek_v3.FAMILY, n_group=3, topk_group=2),
        FormatError,
        ["n_routed_experts 16", "n_group 3"],
    ),
    "groups of one": (
        lambda: read(deepseek_v3.FAMILY, n_group=16, topk_group=2),
        UnsupportedError,
        ["n_group 16", "two best"],
    ),
    "a rank where llama.cpp reads none": (
        lambda: read(deepseek_v2.FAMILY, num_hidden_layers=27),
        UnsupportedError,
        ["q_lora_rank 1536", "num_hidden_layers 27"],
    ),
    "an odd part to rotate": (lambda: read(deepseek_v2.FAMILY, qk_rope_head_dim=7), FormatError, ["7 is odd"]),
    "linear scaling": (
        lambda: read(deepseek_v2.FAMILY, rope_scaling={"type": "linear", "factor": 2.0}),
        UnsupportedError,
        ["'linear'"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
