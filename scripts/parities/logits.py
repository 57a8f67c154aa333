"""Logits of a tiny model: transformers in float32 against llama.cpp and ONNX Runtime GenAI on converted files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import llmkit
from parities.gelu import use_ggml_gelu

N_TOKENS: Final = 64
# Of logits on a range that the rows choose to be of order 1 to 10. Most families stay below 1e-4; those with GELU do
# not, which llama.cpp looks up in a table of float16 on CPUs (ggml_vec_gelu_f32).
LARGEST_DIFFERENCE: Final = 2e-3
LARGEST_MEDIAN: Final = 5e-5


@dataclass(frozen=True)
class LogitsResult:
    """How far the logits are apart at most; `step` is for tokens one by one through the KV cache.

    `median`: of all logits, how far prefill is from transformers with ggml's GELU (see `parities.gelu`).
    """

    range: float
    prefill: float
    step: float
    median: float
    same_argmax: bool

    @property
    def is_good(self) -> bool:
        is_close = max(self.prefill, self.step) < LARGEST_DIFFERENCE and self.median < LARGEST_MEDIAN
        return is_close and self.same_argmax and self.range > 1


def compare_logits(model: Any, gguf: Path, n_vocab: int) -> LogitsResult:
    """Run 64 random tokens through both."""
    ids = np.random.default_rng(0).integers(3, n_vocab, N_TOKENS).tolist()
    expected = _logits(model, ids)
    alike = _logits(model, ids) if use_ggml_gelu(model) else expected
    with llmkit.load(gguf, n_context=2 * N_TOKENS, n_threads=1, full_precision=True) as session:
        prefill = session.logits(ids)
        step = session.logits(ids, at_a_time=1)
    return LogitsResult(
        range=float(expected.max() - expected.min()),
        prefill=float(np.abs(prefill - expected).max()),
        step=float(np.abs(step - expected).max()),
        median=float(np.median(np.abs(prefill - alike))),
        same_argmax=all(np.array_equal(found.argmax(-1), expected.argmax(-1)) for found in (prefill, step)),
    )


def compare_onnx(model: Any, folder: Path, n_vocab: int) -> LogitsResult:
    """The same for a float32 model on ONNX Runtime GenAI; transformers, too, takes the tokens one by one.

    A model whose rotary embedding changes with the length of the text computes something else then.
    """
    ids = np.random.default_rng(0).integers(3, n_vocab, N_TOKENS).tolist()
    expected, step_by_step = _logits(model, ids), _logits_of_steps(model, ids)
    with llmkit.load(folder, n_context=2 * N_TOKENS, n_threads=1, device="cpu") as session:
        prefill = session.logits(ids)
        step = session.logits(ids, at_a_time=1)
    pairs = ((prefill, expected), (step, step_by_step))
    return LogitsResult(
        range=float(expected.max() - expected.min()),
        prefill=float(np.abs(prefill - expected).max()),
        step=float(np.abs(step - step_by_step).max()),
        median=float(np.median(np.abs(prefill - expected))),
        same_argmax=all(np.array_equal(found.argmax(-1), wanted.argmax(-1)) for found, wanted in pairs),
    )


def _logits_of_steps(model: Any, ids: list[int]) -> NDArray[np.float32]:
    import torch

    rows, cache = [], None
    with torch.inference_mode():
        for id in ids:
            found = model(torch.tensor([[id]]), past_key_values=cache, use_cache=True)
            rows.append(found.logits[0].numpy())
            cache = found.past_key_values
    return np.concatenate(rows)


def _logits(model: Any, ids: list[int]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        found: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return found
