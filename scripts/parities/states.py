"""Hidden states of a tiny encoder: transformers in float32 against llama.cpp on the converted file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import llmkit
from parities.gelu import use_ggml_gelu
from parities.logits import N_TOKENS

# Of states that a norm has brought to the order of 1. llama.cpp takes GELU from a table of float16, by an approximation
# (ggml-cpu/vec.h, `ggml_vec_gelu_f32`). With the same table in transformers, sums that end in another order still fall
# on either side of a rounding, so that a model without GELU comes much closer than one with it.
LARGEST_DIFFERENCE: Final = 1e-3
LARGEST_WITH_GELU: Final = 5e-3


@dataclass(frozen=True)
class StatesResult:
    """How far the states after the last layer are apart, for every token.

    `difference` is from transformers with llama.cpp's GELU in place of its own, `as_trained` from transformers as it
    is; `cosine` is that of the mean over tokens.
    """

    range: float
    difference: float
    as_trained: float
    cosine: float

    @property
    def is_good(self) -> bool:
        return self.difference < LARGEST_DIFFERENCE and self.as_trained < LARGEST_WITH_GELU and self.range > 1


def compare_states(model: Any, gguf: Path, n_vocab: int) -> StatesResult:
    """Run 64 random tokens through both."""
    ids = np.random.default_rng(0).integers(3, n_vocab, N_TOKENS).tolist()
    with llmkit.load(gguf, n_context=N_TOKENS, n_threads=2, full_precision=True) as session:
        found = session.hidden_states(ids)
        mean = session.embed(ids)
    as_trained = _states(model, ids)
    expected = as_trained.mean(axis=0)
    use_ggml_gelu(model)
    states = _states(model, ids)
    return StatesResult(
        range=float(states.max() - states.min()),
        difference=float(np.abs(found - states).max()),
        as_trained=float(np.abs(found - as_trained).max()),
        cosine=float(mean @ expected / np.linalg.norm(expected)),
    )


def _states(model: Any, ids: list[int]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        states: NDArray[np.float32] = model(torch.tensor([ids])).last_hidden_state[0].numpy()
    return states
