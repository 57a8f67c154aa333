"""The real model: SmolLM2 converted by llmkit against transformers, llama.cpp's quantiser and its converter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.formats.gguf import open_gguf, plan_layout, u32
from llmkit.quantize.recipes import RECIPES
from llmkit.quantize.schemes import scheme
from llmkit.types import TensorType
from tests import peer
from tests.corpus import plain_texts, random_texts, texts_with

pytestmark = pytest.mark.slow

N_WINDOWS, WINDOW = 16, 256
NAMES = [name for name in RECIPES if name != "q2_k_s"]  # it needs an importance matrix: tests/test_quantize_parity.py
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def converted(smollm2_dithered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("gguf")
    yield {
        name: llmkit.convert(smollm2_dithered, f"gguf-{name}", output=folder / f"{name}.gguf").path for name in NAMES
    }
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def windows(smollm2_dithered: Path) -> list[list[int]]:
    """Windows of technical English, the standard library's own help topics, as token ids."""
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


def mean_kl(path: Path, windows: list[list[int]], reference: list[Logits], *, full_precision: bool = False) -> float:
    """Mean KL divergence of the file's next-token distributions from the reference's, in nats.

    As llama-perplexity does, the second half of each window is scored, where every token has a context.
    """
    divergences = []
    with llmkit.load(path, n_context=WINDOW, full_precision=full_precision) as session:
        for ids, expected in zip(windows, reference, strict=False):
            logits = session.logits(ids)
            divergences.append(kl_divergence(expected[WINDOW // 2 :], logits[WINDOW // 2 :]))
    return float(np.mean(divergences))


def kl_divergence(reference: Logits, logits: Logits) -> NDArray[np.float64]:
    import torch

    p, q = (torch.log_softmax(torch.from_numpy(x).double(), dim=-1) for x in (reference, logits))
    divergence: NDArray[np.float64] = (p.exp() * (p - q)).sum(dim=-1).numpy()
    return divergence


@pytest.mark.parametrize(("name", "bound"), [("bf16", 0.0005), ("q8_0", 0.006)])
def test_logits_are_those_of_transformers(
    name: str, bound: float, converted: dict[str, Path], windows: list[list[int]], reference: list[Logits]
) -> None:
    divergence = mean_kl(converted[name], windows, reference)
    print(f"{name}: mean KL {divergence:.6f}")
    assert 0 <= divergence < bound


def test_most_of_the_divergence_of_q8_0_is_the_engines(
    converted: dict[str, Path], windows: list[list[int]], reference: list[Logits], tmp_path: Path
) -> None:
    """llama.cpp rounds activations to 8 bits too; the weights alone, decoded and run in float32, are far nearer."""
    with open_gguf(converted["q8_0"]) as file:
        metadata = {**file.metadata, "general.file_type": u32(0)}
        layout = plan_layout(metadata, [(t.name, TensorType.F32, t.shape) for t in file.tensors.values()])
        with (tmp_path / "decoded.gguf").open("wb") as output:
            output.write(layout.header)
            for tensor, offset in zip(file.tensors.values(), layout.offsets, strict=True):
                decoder = scheme(TensorType[tensor.dtype])
                values = np.empty((tensor.n_elements // tensor.shape[-1], tensor.shape[-1]), np.float32)
                decoder.decode(file.raw(tensor.name).reshape(len(values), -1), values)
                output.seek(offset)
                output.write(values.tobytes())
            output.truncate(layout.total_bytes)
    divergence = mean_kl(tmp_path / "decoded.gguf", windows[:6], reference, full_precision=True)
    print(f"q8_0, weights alone: mean KL {divergence:.6f}")
    assert 0 < divergence < 0.003


def test_q4_k_m_is_no_worse_than_llama_quantizes(
    converted: dict[str, Path], windows: list[list[int]], reference: list[Logits], tmp_path: Path
) -> None:
    peer.quantize(converted["bf16"], tmp_path / "theirs.gguf", RECIPES["q4_k_m"].file_type)
    ours, theirs = (mean_kl(p, windows[:3], reference) for p in (converted["q4_k_m"], tmp_path / "theirs.gguf"))
    print(f"q4_k_m: mean KL {ours:.6f}, llama-quantize {theirs:.6f}")
    assert ours <= theirs


def test_tokens_equal_those_of_tokenizers(converted: dict[str, Path], smollm2_dithered: Path) -> None:
    """Hard texts of all scripts, through llama.cpp on a converted file."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2_dithered / "tokenizer.json"))
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = [*plain_texts(), *random_texts(200, seed=1), *texts_with(special)]
    with llmkit.load(converted["q4_k_m"], n_context=32) as session:
        different = [
            text
            for text in texts
            if session.tokenize(text, parse_special=True) != tokenizer.encode(text, add_special_tokens=False).ids
        ]
    assert len(texts) > 500
    assert different == []


@pytest.mark.parametrize("name", [name for name in NAMES if RECIPES[name].quantizes])
def test_tensor_data_equals_what_llama_quantize_writes(name: str, converted: dict[str, Path], tmp_path: Path) -> None:
    peer.quantize(converted["bf16"], tmp_path / "theirs.gguf", RECIPES[name].file_type)
    with open_gguf(converted[name]) as ours, open_gguf(tmp_path / "theirs.gguf") as theirs:
        assert {n: t.dtype for n, t in ours.tensors.items()} == {n: t.dtype for n, t in theirs.tensors.items()}
        assert [n for n in ours.tensors if not np.array_equal(ours.raw(n), theirs.raw(n))] == []
