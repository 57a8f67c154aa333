"""MiniCPM's scales, and what of MiniCPM3 and InternLM2 llama.cpp does not compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.convert.archs import ConfigReader, Family, internlm2, minicpm, minicpm3
from llmkit.errors import LlmkitError

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def reader(**changes: Any) -> ConfigReader:
    return ConfigReader(Path("config.json"), {**SIZES, **changes})


def test_scales() -> None:
    h = minicpm.read_hparams(reader(scale_emb=12, scale_depth=1.4, dim_model_base=16))
    assert (h.embedding_scale, h.residual_scale, h.logit_scale) == (12, 0.7, 4)
    assert h.tied_embeddings  # as the published class has it


def test_sparse_attention_is_noted() -> None:
    config = reader(sparse_config={"topk": 64})
    assert "sparse_config" in minicpm.notes(config, minicpm.read_hparams(config))[0]
    assert not minicpm.notes(reader(), minicpm.read_hparams(reader()))


def test_defaults_of_minicpm3_are_those_of_transformers() -> None:
    from transformers import MiniCPM3Config

    h = minicpm3.read_hparams(reader())
    theirs = MiniCPM3Config(**SIZES, num_key_value_heads=4)
    assert h.latent is not None
    assert (h.latent.q_rank, h.latent.kv_rank) == (theirs.q_lora_rank, theirs.kv_lora_rank)
    assert (h.latent.n_keys, h.latent.n_values) == (theirs.qk_head_dim, theirs.v_head_dim)
    assert (h.n_context, h.rms_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)
    assert h.tied_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        (minicpm.FAMILY, {"num_experts": 8}, ["num_experts"]),
        (minicpm3.FAMILY, {"scale_depth": 1.0}, ["scale_depth is 1", "1.4 only"]),
        (minicpm3.FAMILY, {"dim_model_base": 64}, ["dim_model_base is 64", "256 only"]),
        (minicpm3.FAMILY, {"q_lora_rank": None}, ["q_lora_rank"]),
        (
            minicpm3.FAMILY,
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale_all_dim": 1.0}},
            ["mscale_all_dim"],
        ),
        (internlm2.FAMILY, {"tie_word_embeddings": True}, ["tie_word_embeddings"]),
    ],
)
def test_refused(family: Family, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(LlmkitError) as caught:
        family.read_hparams(reader(**changes))
    for word in words:
        assert word in str(caught.value)
