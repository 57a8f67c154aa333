"""Every variation of the Llama family: a tiny random model gives transformers' logits after conversion to f32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmkit
from tests.tinymodels import N_VOCAB, TinyLlama

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MISTRAL: dict[str, Any] = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

CASES = {
    "llama 2: no grouping": TinyLlama(n_kv_heads=4),
    "llama 3: grouped, other base": TinyLlama(config={"rope_theta": 500000.0}),
    "llama 3.1 scaling, older config": TinyLlama(config={"rope_scaling": LLAMA3}),
    "llama 3.2 scaling, tied, newer config": TinyLlama(
        tied=True, config={"rope_theta": ..., "rope_parameters": {"rope_theta": 500000.0, **LLAMA3}}
    ),
    "linear scaling": TinyLlama(config={"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "yarn scaling": TinyLlama(config={"rope_scaling": YARN}),
    "yarn scaling, attention factor": TinyLlama(config={"rope_scaling": {**YARN, "attention_factor": 1.5}}),
    "yarn scaling, mscale": TinyLlama(config={"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "biases everywhere": TinyLlama(bias=True),
    "heads wider than hidden / heads": TinyLlama(n_heads=8, n_kv_heads=2, head_width=64, config={"head_dim": 64}),
    "mistral": TinyLlama(config=MISTRAL),
    "rows of 96": TinyLlama(n_embd=96, n_ff=160, n_heads=3, n_kv_heads=1),
    "float16 weights, sharded": TinyLlama(dtype="F16", n_shards=3),
    "float32 weights": TinyLlama(dtype="F32"),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = CASES[case].write(tmp_path / "model")
    ids = np.random.default_rng(0).integers(2, N_VOCAB, 100).tolist()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    result = llmkit.convert(folder, "gguf-f32", output=tmp_path)
    with llmkit.load(result.path, n_context=128, full_precision=True) as session:
        logits = session.logits(ids)
    assert logits.shape == expected.shape == (100, N_VOCAB)
    assert float(expected.max() - expected.min()) > 5  # the scale that the bound below is to be seen against
    assert np.abs(logits - expected).max() < 2e-4
    assert np.array_equal(logits.argmax(axis=-1), expected.argmax(axis=-1))
