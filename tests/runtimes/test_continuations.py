"""Continuations of a prompt: their logits are those of the whole text, whatever passes together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import llmkit
from llmkit.errors import EngineError
from llmkit.protocols import SamplingOptions, Session
from llmkit.runtimes.fake import FakeSession

PREFIX = [3, 17, 4, 29, 5, 5, 11]
CONTINUATIONS = [[7], [8, 9, 10], [7, 7], [40, 2, 3, 4, 5, 6], [9], [1, 2], [3, 1], [4], [5, 6, 7], [30]]
ENGINES = {
    "llama.cpp": ("gguf", {"full_precision": True}),
    "llama.cpp, together": ("gguf", {"full_precision": True, "n_branches": 4}),
    "onnx": ("onnx", {}),
    "torch": ("checkpoint", {}),
}


def open_session(tiny_forms: dict[str, Path], engine: str, **more: object) -> Session:
    kind, options = ENGINES[engine]
    return llmkit.load(tiny_forms[kind], n_context=512, n_threads=1, **(options | more))


def continued(session: Session, prefix: list[int], continuations: list[list[int]]) -> list[NDArray[np.float32]]:
    return [rows.copy() for rows in session.each_continuation(prefix, continuations)]


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_are_those_of_the_whole(tiny_forms: dict[str, Path], engine: str) -> None:
    with open_session(tiny_forms, engine) as session:
        found = continued(session, PREFIX, CONTINUATIONS)
        again = continued(session, [*PREFIX, 2], [[5, 5]])  # the cache has most of it
        for ids, rows in zip(CONTINUATIONS, found, strict=True):
            expected = session.logits([*PREFIX, *ids])[len(PREFIX) - 1 : -1]
            assert rows.shape == (len(ids), session.info.n_vocab)
            np.testing.assert_allclose(rows, expected, atol=2e-5)
        np.testing.assert_allclose(again[0], session.logits([*PREFIX, 2, 5, 5])[len(PREFIX) : -1], atol=2e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_long_ones_and_many(tiny_forms: dict[str, Path], engine: str) -> None:
    """More tokens than pass together, alone and in sum."""
    random = np.random.default_rng(1)
    prefix = random.integers(3, 60, 40).tolist()
    wanted = [random.integers(3, 60, n).tolist() for n in (100, 90, 300, 2)]
    with open_session(tiny_forms, engine) as session:
        for continuations in (wanted[:2], wanted):
            for ids, rows in zip(continuations, continued(session, prefix, continuations), strict=True):
                expected = session.logits([*prefix, *ids])[len(prefix) - 1 : -1]
                np.testing.assert_allclose(rows, expected, atol=5e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_generation_goes_on_afterwards(tiny_forms: dict[str, Path], engine: str) -> None:
    greedy = SamplingOptions(temperature=0, max_tokens=8)
    with open_session(tiny_forms, engine) as session:
        expected = "".join(session.generate(PREFIX, greedy))
        continued(session, PREFIX, CONTINUATIONS)
        assert "".join(session.generate(PREFIX, greedy)) == expected
        assert session.stats.n_reused == len(PREFIX) - 1


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be(tiny_forms: dict[str, Path], engine: str) -> None:
    with open_session(tiny_forms, engine) as session:
        with pytest.raises(EngineError, match="one token"):
            session.each_continuation([], [[1]])
        with pytest.raises(EngineError, match="one token"):
            session.each_continuation([1], [[1], []])
        with pytest.raises(EngineError, match="outside the vocabulary"):
            session.each_continuation([1], [[10**6]])
        with pytest.raises(EngineError, match="larger context"):
            session.each_continuation([1] * 500, [[1], [1] * 14])
        assert len(continued(session, [1] * 500, [[1] * 13])[0]) == 13
        assert continued(session, [1], []) == []
        parts = session.each_continuation(PREFIX, CONTINUATIONS)
        next(parts)
        session.logits([1, 2])
        with pytest.raises(EngineError, match="another task"):
            next(parts)


def test_a_number_of_branches_that_cannot_be(tiny_forms: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="n_branches is 65"):
        open_session(tiny_forms, "llama.cpp", n_branches=65)


def test_the_fake_session_agrees() -> None:
    session = FakeSession()
    rows = list(session.each_continuation(list(b"ab"), [list(b"cd"), list(b"z")]))
    assert [found.argmax(-1).tolist() for found in rows] == [list(b"cd"), list(b"c")]
