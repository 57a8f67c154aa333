"""all-MiniLM-L6-v2, real weights: embeddings of the converted files against transformers in float32, mean-pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.formats.gguf import open_gguf
from llmkit.types import TensorType
from tests.test_quantize_parity import compare

pytestmark = pytest.mark.slow

SENTENCES = (
    "A cat sits on the mat.",
    "The feline rests on a rug.",
    "Interest rates rose by a quarter point on Thursday.",
    "How do I change the oil of my car?",
    "What is gravity?",
    "Gravity is a fundamental interaction, which causes mutual attraction between all things that have mass.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)",
    "HTTPServer, snake_case, camelCase & C++; 3.14159 is not 22/7!",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg.",
    "L'été dernier, où étaient-ils ?",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "今天天气很好，我们去公园散步吧。",
    "مرحبا بالعالم، كيف حالك؟",
    "😀 emoji 👍🏽 and ﬁ ligatures",
    "word",
    "",
    "[MASK] tokens count [SEP] as such",
    "An embedding model turns a text into a vector. " * 40,
)


@pytest.fixture(scope="module")
def expected(minilm_checkpoint: Path) -> NDArray[np.float32]:
    """What sentence-transformers computes: the mean of all tokens' states, made 1 long."""
    import torch
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(minilm_checkpoint)
    model: Any = transformers.AutoModel.from_pretrained(minilm_checkpoint, dtype=torch.float32).eval()
    vectors = []
    for sentence in SENTENCES:
        ids = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=512)
        with torch.inference_mode():
            vectors.append(model(**ids).last_hidden_state[0].mean(dim=0).numpy())
    rows = np.array(vectors, np.float32)
    normalized: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalized


@pytest.mark.parametrize(
    ("target", "least", "full_precision"),
    [
        ("gguf-f32", 0.99999, True),
        ("gguf-f32", 0.9999, False),
        ("gguf-q8", 0.998, False),
        ("gguf-q4", 0.97, False),
    ],
)
def test_embeddings(
    target: str,
    least: float,
    full_precision: bool,
    expected: NDArray[np.float32],
    minilm_checkpoint: Path,
    tmp_path: Path,
) -> None:
    path = llmkit.convert(minilm_checkpoint, target, output=tmp_path / "m.gguf").path
    with llmkit.load(path, n_threads=2, full_precision=full_precision) as session:
        found = np.array([session.embed(sentence) for sentence in SENTENCES])
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() > least
    # Nearer to its own sentence than to any other.
    assert ((found @ expected.T).argmax(axis=1) == np.arange(len(SENTENCES))).all()


@pytest.mark.parametrize("name", ["q8_0", "q4_k_m"])
def test_types(name: str, minilm_gguf: Path, minilm_checkpoint: Path, tmp_path: Path) -> None:
    """Converting at once gives the types and bytes that llama-quantize gives the float32 file."""
    compare(minilm_gguf, name, tmp_path)
    at_once = llmkit.convert(minilm_checkpoint, f"gguf-{name}", output=tmp_path / "at-once.gguf").path
    with open_gguf(at_once) as ours, open_gguf(tmp_path / "theirs.gguf") as theirs:
        assert {n: t.dtype for n, t in ours.tensors.items()} == {n: t.dtype for n, t in theirs.tensors.items()}
        assert [n for n in ours.tensors if not np.array_equal(ours.raw(n), theirs.raw(n))] == []
        assert ours.tensors["position_embd.weight"].dtype == TensorType.F32.name
