"""Hyper-parameters of Mamba, Falcon Mamba and Mamba 2 from config.json, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.convert.archs import ConfigReader, Family, HParams, StateSpace, falcon_mamba, mamba, mamba2
from llmkit.errors import FormatError, LlmkitError, UnsupportedError

SIZES = {"vocab_size": 100, "hidden_size": 64}


def read(family: Family, **changes: Any) -> tuple[HParams, tuple[str, ...]]:
    config = ConfigReader(Path("config.json"), {**SIZES, **changes})
    hparams = family.read_hparams(config)
    return hparams, family.notes(config, hparams)


def test_defaults_are_those_of_transformers() -> None:
    from transformers import FalconMambaConfig, MambaConfig

    for family, make in ((mamba.FAMILY, MambaConfig), (falcon_mamba.FAMILY, FalconMambaConfig)):
        h, _ = read(family)
        theirs = make(**SIZES)
        normed = family is falcon_mamba.FAMILY
        assert h.states == StateSpace(
            n_inner=theirs.intermediate_size,
            n_convolved=theirs.conv_kernel,
            n_state=theirs.state_size,
            rank=theirs.time_step_rank,
            normed=normed,
        )
        assert (h.n_layers, h.rms_eps) == (theirs.num_hidden_layers, theirs.layer_norm_epsilon)
        assert h.tied_embeddings == theirs.tie_word_embeddings
        assert h.rope is None


def test_a_width_that_is_stated_counts_more_than_expand() -> None:
    h, _ = read(falcon_mamba.FAMILY, expand=16, intermediate_size=128, time_step_rank=5)
    assert h.states is not None
    assert (h.states.n_inner, h.states.rank) == (128, 5)


def test_defaults_of_mamba2_are_those_of_transformers() -> None:
    from transformers import Mamba2Config

    h, _ = read(mamba2.FAMILY, hidden_size=4096)
    theirs = Mamba2Config()
    assert h.states is not None
    assert (h.states.rank, h.states.n_groups, h.states.n_state) == (
        theirs.num_heads,
        theirs.n_groups,
        theirs.state_size,
    )
    assert h.states.n_inner == theirs.num_heads * theirs.head_dim
    assert (h.n_layers, h.tied_embeddings) == (theirs.num_hidden_layers, theirs.tie_word_embeddings)


@pytest.mark.parametrize("limits", [[0.0, float("inf")], [0, {"__float__": "Infinity"}], None])
def test_time_steps_without_limit(limits: object) -> None:
    read(mamba2.FAMILY, hidden_size=4096, time_step_limit=limits)


def test_an_epsilon_that_llama_cpp_does_not_have_is_noted() -> None:
    _, notes = read(falcon_mamba.FAMILY)
    assert "mixer_rms_eps 1e-06" in notes[0]
    assert not read(falcon_mamba.FAMILY, mixer_rms_eps=1e-5)[1]


@pytest.mark.parametrize(
    ("family", "changes", "error", "words"),
    [
        (mamba.FAMILY, {"expand": 3}, UnsupportedError, ["intermediate_size 192", "hidden_size 64"]),
        (mamba.FAMILY, {"use_conv_bias": False}, UnsupportedError, ["use_conv_bias"]),
        (mamba.FAMILY, {"time_step_rank": "many"}, FormatError, ["time_step_rank", "'many'"]),
        (mamba.FAMILY, {"expand": 1e30}, FormatError, ["intermediate_size"]),
        (mamba2.FAMILY, {}, FormatError, ["num_heads 128", "head_dim 64", "128"]),
        (mamba2.FAMILY, {"num_heads": 2, "n_groups": 4}, FormatError, ["num_heads 2", "n_groups 4"]),
        (
            mamba2.FAMILY,
            {"num_heads": 2, "n_groups": 1, "time_step_limit": [0.001, 0.1]},
            UnsupportedError,
            ["time_step_limit", "0.001"],
        ),
    ],
)
def test_refused(family: Family, changes: dict[str, Any], error: type[LlmkitError], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        read(family, **changes)
    for word in words:
        assert word in str(caught.value)
