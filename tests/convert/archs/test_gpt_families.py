"""GPT-2 and what came of it: how both generations of config.json are read, and what is refused or noted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.convert.archs import ConfigReader, HParams, blocks, falcon, find_family
from llmkit.convert.gguf_keys import architecture_metadata
from llmkit.convert.transforms import View
from llmkit.errors import LlmkitError

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
FALCON: dict[str, Any] = {"architectures": ["FalconForCausalLM"], **SIZES}
FALCON_40B: dict[str, Any] = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
GPT2: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_head": 4}
BIGCODE: dict[str, Any] = {**GPT2, "architectures": ["GPTBigCodeForCausalLM"]}
NEOX: dict[str, Any] = {"architectures": ["GPTNeoXForCausalLM"], **SIZES}
NEMOTRON: dict[str, Any] = {"architectures": ["NemotronForCausalLM"], **SIZES}
STABLELM: dict[str, Any] = {"architectures": ["StableLmForCausalLM"], **SIZES, "num_key_value_heads": 2}
STARCODER2: dict[str, Any] = {"architectures": ["Starcoder2ForCausalLM"], **SIZES}


def read(values: dict[str, Any]) -> HParams:
    config = ConfigReader(Path("config.json"), values)
    return find_family(config).read_hparams(config)


def notes(values: dict[str, Any]) -> str:
    config = ConfigReader(Path("config.json"), values)
    family = find_family(config)
    return "\n".join(family.notes(config, family.read_hparams(config)))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (
            {"architectures": ["RWForCausalLM"], "model_type": "RefinedWebModel", "n_head": 4, "n_layer": 2},
            {**FALCON, "num_kv_heads": 4},
        ),
        (
            {"architectures": ["RWForCausalLM"], "model_type": "RefinedWeb", "n_head": 4, "n_layer": 2, "n_head_kv": 2},
            FALCON_40B,
        ),
        (
            {**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 500},
            {**NEOX, "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        ),
        (
            {**STABLELM, "architectures": ["StableLMEpochForCausalLM"], "norm_eps": 1e-3, "rope_pct": 0.5},
            {**STABLELM, "layer_norm_eps": 1e-3, "partial_rotary_factor": 0.5},
        ),
        ({**NEMOTRON, "rope_percent": 0.25}, {**NEMOTRON, "partial_rotary_factor": 0.25}),
    ],
)
def test_older_names(older: dict[str, Any], newer: dict[str, Any]) -> None:
    if "RWForCausalLM" in older["architectures"]:
        older = {**older, "hidden_size": 64, "vocab_size": 100}
    assert architecture_metadata("", read(older), []) == architecture_metadata("", read(newer), [])


def test_defaults_are_those_of_transformers() -> None:
    assert read(GPT2).n_ff == 256
    assert read(GPT2).tied_embeddings
    assert read(BIGCODE).n_kv_heads == 1
    assert read({**BIGCODE, "multi_query": False}).n_kv_heads == 4
    assert read(FALCON).n_kv_heads == 1
    assert read({**FALCON, "multi_query": False}).n_kv_heads == 4
    assert read(FALCON_40B).n_parallel_norms == 2
    assert read({**FALCON_40B, "num_ln_in_parallel_attn": 1}).n_parallel_norms == 1
    shares = {name: read(config).rope for name, config in (("neox", NEOX), ("stablelm", STABLELM), ("nem", NEMOTRON))}
    assert {name: rope and rope.share for name, rope in shares.items()} == {"neox": 0.25, "stablelm": 0.25, "nem": 0.5}
    assert read(NEOX).parallel_residual is True
    assert read(STABLELM).parallel_residual is False
    assert read(NEMOTRON).norm_eps == 1e-5
    assert read(NEMOTRON).rms_eps is None


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**FALCON, "alibi": True}, "alibi is True; llama.cpp computes this architecture with False only"),
        ({**FALCON, "bias": True}, "bias is True"),
        ({**FALCON, "parallel_attn": False}, "parallel_attn is False"),
        ({**FALCON, "activation": "relu"}, "activation is 'relu'"),
        ({**FALCON, "num_attention_heads": 3}, "hidden_size 64 does not make num_attention_heads 3"),
        ({**FALCON_40B, "num_kv_heads": 3}, "not divisible by num_kv_heads 3"),
        ({**FALCON_40B, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn"),
        ({**FALCON, "rope_scaling": LLAMA3}, "rope_type 'llama3'"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({**GPT2, "scale_attn_weights": False}, "scale_attn_weights is False"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention is True"),
        ({**GPT2, "n_head": 5}, "n_embd 64 is not divisible by n_head 5"),
        ({**GPT2, "activation_function": "silu"}, "activation_function is 'silu'"),
        ({**NEOX, "attention_bias": False}, "attention_bias is False"),
        ({**NEOX, "rotary_pct": 0.2}, "is 3; rotary embedding needs pairs"),
        ({**NEOX, "rotary_pct": 0.01}, "is 0; rotary embedding needs pairs"),
        ({**NEOX, "rope_scaling": LLAMA3}, "rope_type 'llama3'"),
        ({**NEMOTRON, "head_dim": 32}, "head_dim is 32"),
        ({**NEMOTRON, "hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({**STABLELM, "rope_scaling": LLAMA3}, "rope_type 'llama3'"),
        ({**STARCODER2, "use_bias": False}, "use_bias is False"),
        ({**STARCODER2, "partial_rotary_factor": 0.5}, "this architecture rotates whole heads"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmkitError, match=message) as caught:
        read(values)
    assert "config.json" in str(caught.value)


def test_what_llama_cpp_computes_otherwise_is_noted() -> None:
    assert "tanh approximation" in notes(NEOX)
    assert "tanh approximation" in notes(FALCON)
    assert notes(GPT2) == notes(BIGCODE) == ""
    assert "tanh approximation" in notes({**GPT2, "activation_function": "gelu"})
    assert notes(STARCODER2) == ""
    assert "sliding_window 1024 is not carried over" in notes({**STARCODER2, "sliding_window": 1024})


def elements(views: View | tuple[View, ...]) -> list[int]:
    """The rows that the views show, in order, of a tensor that is one column."""
    found = views if isinstance(views, tuple) else (views,)
    return [int(start) for view in found for start in view.matrix(1).row_starts(0, view.n_elements)]


def test_fused_projections_become_queries_keys_and_values_in_a_row() -> None:
    h = read(NEOX)
    stored = np.arange(3 * 64).reshape(h.n_heads, 3, h.head_dim)
    expected = np.concatenate([stored[:, place].reshape(-1) for place in range(3)])
    assert elements(blocks.three_per_head(h, View.of((3 * 64,)))) == expected.tolist()

    h = read(FALCON_40B)
    stored = np.arange(64 + 2 * 2 * 16).reshape(2, 4, 16)
    expected = np.concatenate([stored[:, :2].reshape(-1), stored[:, 2].reshape(-1), stored[:, 3].reshape(-1)])
    assert elements(falcon._queries_first(h, View.of((128,)))) == expected.tolist()
