"""The real model: SmolLM2 converted by llmkit against transformers, llama.cpp's quantiser and its converter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.formats.gguf import open_gguf
from llmkit.quantize.recipes import RECIPES
from tests import peer

pytestmark = pytest.mark.slow

N_WINDOWS, WINDOW = 16, 256
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def converted(smollm2_dithered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("gguf")
    yield {
        name: llmkit.convert(smollm2_dithered, f"gguf-{name}", output=folder / f"{name}.gguf").path for name in RECIPES
    }
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def windows(smollm2_dithered: Path) -> list[list[int]]:
    """Windows of technical English, as token ids."""
    from tokenizers import Tokenizer

    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = Tokenizer.from_file(str(smollm2_dithered / "tokenizer.json")).encode(text).ids
    return [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(N_WINDOWS)]


@pytest.fixture(scope="module")
def reference(smollm2_dithered: Path, windows: list[list[int]]) -> list[Logits]:
    """Logits of transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_dithered, dtype=torch.float32)
    with torch.inference_mode():
        return list(model(torch.tensor(windows)).logits.numpy())


def mean_kl(path: Path, windows: list[list[int]], reference: list[Logits]) -> float:
    """Mean KL divergence of the file's next-token distributions from the reference's, in nats."""
    with llmkit.load(path, n_context=WINDOW) as session:
        divergences = [
            kl_divergence(expected, session.logits(ids)) for ids, expected in zip(windows, reference, strict=False)
        ]
    return float(np.mean(divergences))


def kl_divergence(reference: Logits, logits: Logits) -> NDArray[np.float64]:
    p, q = (log_softmax(x.astype(np.float64)) for x in (reference, logits))
    divergence: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1)
    return divergence


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return result


@pytest.mark.parametrize(("name", "bound"), [("bf16", 0.0005), ("q8_0", 0.006)])
def test_logits_are_those_of_transformers(
    name: str, bound: float, converted: dict[str, Path], windows: list[list[int]], reference: list[Logits]
) -> None:
    divergence = mean_kl(converted[name], windows, reference)
    print(f"{name}: mean KL {divergence:.6f}")
    assert 0 <= divergence < bound


def test_q4_k_m_is_no_worse_than_llama_quantizes(
    converted: dict[str, Path], windows: list[list[int]], reference: list[Logits], tmp_path: Path
) -> None:
    peer.quantize(converted["bf16"], tmp_path / "theirs.gguf", RECIPES["q4_k_m"].file_type)
    ours, theirs = (mean_kl(p, windows[:4], reference) for p in (converted["q4_k_m"], tmp_path / "theirs.gguf"))
    print(f"q4_k_m: mean KL {ours:.6f}, llama-quantize {theirs:.6f}")
    assert ours <= theirs


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.quantizes])
def test_tensor_data_equals_what_llama_quantize_writes(name: str, converted: dict[str, Path], tmp_path: Path) -> None:
    peer.quantize(converted["bf16"], tmp_path / "theirs.gguf", RECIPES[name].file_type)
    with open_gguf(converted[name]) as ours, open_gguf(tmp_path / "theirs.gguf") as theirs:
        assert {n: t.dtype for n, t in ours.tensors.items()} == {n: t.dtype for n, t in theirs.tensors.items()}
        assert [n for n in ours.tensors if not np.array_equal(ours.raw(n), theirs.raw(n))] == []
