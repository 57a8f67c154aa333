"""Questions with given answers: which one is taken, and files that are no such."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.cli import run
from llmkit.errors import EvaluationError, FormatError
from llmkit.evaluate.choices import Question, answer, read_questions
from llmkit.progress import Silent
from llmkit.runtimes.fake import FakeSession
from llmkit.tasks import ask
from tests.runtimes import tiny_gguf


def test_the_likeliest_is_taken() -> None:
    """The fake model expects each byte's successor."""
    questions = [
        Question("ab", ("cde", "xyz"), 0),
        Question("ab", ("zzz", "cd"), 1),
        Question("ab ", ("!", "q"), 0),  # the blank belongs to the answer, and "!" is what follows it
        Question("ab", ("cd", "q"), 1),  # wrong
    ]
    found = answer(FakeSession(), questions, Silent())
    assert found.n_questions == 4
    assert found.accuracy.value == 0.75
    assert 0 < found.accuracy.error < 0.5


def test_likelihood_per_byte_gives_long_answers_the_same_chance() -> None:
    class Bytes(FakeSession):
        def logits(self, ids: Sequence[int], *, at_a_time: int | None = None) -> NDArray[np.float32]:
            rows = np.zeros((len(ids), 256), np.float32)
            rows[:, ord("l")] = 2  # every l of the long answer is likely, and yet their product is small
            return rows

    found = answer(Bytes(), [Question("x", ("llllllll", "s"), 0)], Silent())
    assert (found.accuracy.value, found.normalised.value) == (0, 1)


def test_on_a_real_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_gguf.write_llama(tmp_path / "m.gguf")
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"question": "Is it so?", "choices": [" yes", " no"], "answer": n} for n in (0, 1)]))
    found = ask(model, path, threads=1)["m.gguf"]
    assert found.accuracy.value == 0.5  # the same question with either answer
    assert run(["-q", "eval", str(model), "--choices", str(path), "--threads", "1"]) == 0
    assert "50.0%" in capsys.readouterr().out
    assert run(["-q", "eval", str(model), "--choices", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["m.gguf"]["n_questions"] == 2
    assert run(["eval", str(model), "--choices", str(path), "--protocol", "sliding"]) == 2
    assert "--protocol does not go with --choices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of questions"),
        ("[]", "expected a list of questions"),
        ("[1]", "question 1 is no object"),
        ('[{"question": "", "choices": ["a", "b"], "answer": 0}]', "question 1: `question` must be a text"),
        ('[{"question": "q", "choices": ["a"], "answer": 0}]', "`choices` must be two texts or more"),
        ('[{"question": "q", "choices": ["a", ""], "answer": 0}]', "`choices` must be two texts or more"),
        ('[{"question": "q", "choices": ["a", "b"], "answer": 2}]', "`answer` must be a number from 0 to 1"),
        ('[{"question": "q", "choices": ["a", "b"], "answer": true}]', "`answer` must be a number"),
        ("[", "not valid JSON"),
    ],
)
def test_files_that_are_no_questions(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=message):
        read_questions(path)


def test_logits_that_are_no_numbers() -> None:
    class Broken(FakeSession):
        def logits(self, ids: Sequence[int], *, at_a_time: int | None = None) -> NDArray[np.float32]:
            return np.full((len(ids), 256), np.nan, np.float32)

    with pytest.raises(EvaluationError, match="fake: its logits are not all numbers"):
        answer(Broken(), [Question("x", ("a", "b"), 0)], Silent())
