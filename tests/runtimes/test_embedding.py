"""Embeddings from llama.cpp: of an encoder (all-MiniLM-L6-v2) and of a decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.errors import EngineError
from llmkit.formats.gguf import open_gguf
from llmkit.progress import Silent
from llmkit.runtimes import _llama_embedding
from llmkit.runtimes.fake import FakeSession
from llmkit.runtimes.importance import collect
from llmkit.runtimes.llamacpp import LlamaCppSession, load
from llmkit.runtimes.requests import PromptTooLongError

CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def encoder(minilm_gguf: Path) -> Iterator[LlamaCppSession]:
    with load(minilm_gguf, n_threads=1) as opened:
        yield opened


def test_info(encoder: LlamaCppSession) -> None:
    assert encoder.info.n_context == 512
    assert encoder.info.architecture == "bert"
    assert encoder.info.extra["pooling"] == "mean"


def test_embedding_is_the_mean_of_hidden_states(encoder: LlamaCppSession) -> None:
    text = "A text of some words."
    ids = encoder.tokenize(text, add_special=True)
    assert (ids[0], ids[-1]) == (CLS, SEP)
    states = encoder.hidden_states(ids)
    assert states.dtype == np.float32
    assert states.shape == (len(ids), 384)
    mean = states.mean(axis=0)
    np.testing.assert_allclose(encoder.embed(text, normalize=False), mean, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(text), mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(encoder.embed(ids), encoder.embed(text))


def test_texts_alike_are_near(encoder: LlamaCppSession) -> None:
    cat, feline, bank = map(
        encoder.embed, ("A cat sits on the mat.", "The feline is on a rug.", "Interest rates rose by a quarter point.")
    )
    assert cat @ feline > 0.5 > 0.2 > cat @ bank


def test_every_token_counts(encoder: LlamaCppSession) -> None:
    """Tokens attend to those behind them: the first state changes with the last token."""
    first = encoder.hidden_states([CLS, 2000, 2001, SEP])
    other = encoder.hidden_states([CLS, 2000, 3001, SEP])
    assert np.abs(first[1] - other[1]).max() > 0.01


def test_embeddings_do_not_depend_on_what_came_before(encoder: LlamaCppSession) -> None:
    before = encoder.embed("one text")
    encoder.embed("another text " * 100)
    np.testing.assert_array_equal(encoder.embed("one text"), before)


def test_longest_text(encoder: LlamaCppSession) -> None:
    assert encoder.hidden_states([CLS] + [2000] * 510 + [SEP]).shape == (512, 384)
    with pytest.raises(PromptTooLongError, match="513 tokens"):
        encoder.embed([CLS] + [2000] * 511 + [SEP])
    assert encoder.embed("").shape == (384,)  # [CLS] and [SEP]
    with pytest.raises(EngineError, match="no tokens"):
        encoder.embed([])
    with pytest.raises(EngineError, match="outside the vocabulary"):
        encoder.embed([40000])


@pytest.mark.parametrize(
    "ask",
    [
        lambda session: session.logits([1, 2]),
        lambda session: session.generate("Once"),
        lambda session: session.chat([{"role": "user", "content": "Hello"}]),
    ],
)
def test_no_next_token(ask: Callable[[LlamaCppSession], Any], encoder: LlamaCppSession) -> None:
    with pytest.raises(EngineError, match="is an encoder: it gives embeddings"):
        ask(encoder)


def test_no_positions_beyond_the_table(minilm_gguf: Path) -> None:
    with pytest.raises(EngineError, match="512 positions"):
        load(minilm_gguf, n_context=513)


@pytest.mark.parametrize(("pooling", "token"), [("cls", 0), ("last", -1)])
def test_other_pooling(pooling: str, token: int, minilm_gguf: Path) -> None:
    with load(minilm_gguf, n_threads=1, n_context=64, pooling=pooling) as session:
        ids = session.tokenize("some words", add_special=True)
        np.testing.assert_array_equal(session.embed(ids, normalize=False), session.hidden_states(ids)[token])


def test_unknown_pooling(minilm_gguf: Path) -> None:
    with pytest.raises(EngineError, match="pooling is 'max': expected one of mean, cls, last"):
        load(minilm_gguf, pooling="max")


def test_a_file_that_does_not_say_that_it_is_an_encoder(minilm_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp would end the process at a batch that its context has no room for."""
    data = bytearray(minilm_gguf.read_bytes())
    key = data.index(b"bert.attention.causal")
    data[key : key + 21] = b"bert.attention.cusual"
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(EngineError, match="does not say that it is an encoder"):
        load(tmp_path / "m.gguf", n_threads=1)


def test_no_importance_of_an_encoder(minilm_gguf: Path) -> None:
    with pytest.raises(EngineError, match="an encoder, which predicts no tokens"):
        collect(minilm_gguf, "text " * 2000, Silent())


def test_decoder(tiny: LlamaCppSession, tiny_folder: Path) -> None:
    """The hidden states of a decoder are what its output matrix turns into logits, whatever was processed before."""
    ids = [1, *range(10, 110)]
    with open_gguf(tiny_folder / "llama.gguf") as file:
        output = file.raw("output.weight").view(np.float32).reshape(-1, 32)
    expected = tiny.logits(ids)
    states = tiny.hidden_states(ids)
    np.testing.assert_allclose(states @ output.T, expected, atol=1e-3)
    np.testing.assert_allclose(tiny.logits(ids), expected, atol=1e-6)
    np.testing.assert_allclose(tiny.embed(ids, normalize=False), states[-1], atol=1e-6)
    assert "".join(tiny.generate("ab")) is not None


def test_fake() -> None:
    session = FakeSession()
    np.testing.assert_allclose(session.embed("aab", normalize=False)[[97, 98]], [2 / 3, 1 / 3])
    assert np.linalg.norm(session.embed("aab")) == pytest.approx(1)


def test_vector_of_zeros() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert not _llama_embedding.pool(zeros, "mean", normalize=True).any()
