"""Questions with given answers, of which the one is taken that the model finds likeliest.

As lm-evaluation-harness does for multiple choice: an answer's likelihood is that of its tokens after the question's
(its `acc`), and once more divided by the answer's bytes, so that long answers have the same chance (its `acc_bytes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmkit.errors import FormatError
from llmkit.evaluate.journal import NOTHING, Section
from llmkit.evaluate.likelihoods import Pair, likelihoods
from llmkit.evaluate.scores import Estimate
from llmkit.formats.strictjson import read_json
from llmkit.protocols import Progress, Session

_MOST: Final = 1_000_000  # questions in a file


@dataclass(frozen=True, slots=True)
class Question:
    """A text, what may follow it, and the number of what is right."""

    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """Shares of the questions whose right answer was taken: by likelihood, and by likelihood per byte.

    interrupted: whether Ctrl-C ended it before the last question; n_questions are those that count.
    """

    n_questions: int
    accuracy: Estimate
    normalised: Estimate
    interrupted: bool = False


def read_questions(path: Path) -> list[Question]:
    """The questions of a JSON file: a list of objects with `question`, `choices` (texts) and `answer` (from 0 on).

    Raises FormatError for what is otherwise, naming the question's number.
    """
    content = read_json(path)
    if not isinstance(content, list) or not 0 < len(content) <= _MOST:
        raise FormatError(path, "expected a list of questions: [{question, choices, answer}, ...]")
    return [_question(path, number, item) for number, item in enumerate(content, 1)]


def _question(path: Path, number: int, item: Any) -> Question:
    if not isinstance(item, dict):
        raise FormatError(path, f"question {number} is no object with question, choices and answer")
    text, choices, answer = (item.get(key) for key in ("question", "choices", "answer"))
    if not isinstance(text, str) or not text:
        raise FormatError(path, f"question {number}: `question` must be a text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(x, str) and x for x in choices):
        raise FormatError(path, f"question {number}: `choices` must be two texts or more")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise FormatError(path, f"question {number}: `answer` must be a number from 0 to {len(choices) - 1}")
    return Question(text, tuple(choices), answer)


def answer(
    session: Session, questions: Sequence[Question], progress: Progress, kept: Section = NOTHING
) -> ChoiceScores:
    """Let a model choose; Ctrl-C ends it after the first question.

    kept: where likelihoods are kept, and taken from if they are there.

    Raises EvaluationError for logits that are no numbers, EngineError.
    """
    plain, normalised = [], []
    progress.start(f"Asking {session.info.name}", len(questions), "questions")
    try:
        for question in questions:
            pairs = [_pair(session, question.text, choice) for choice in question.choices]
            found = {number: likelihood.value for number, likelihood in likelihoods(session, pairs, kept)}
            values = np.array([found[number] for number in range(len(pairs))])
            n_bytes = np.array([len(choice.encode("utf-8", "replace")) for choice in question.choices])
            plain.append(float(values.argmax() == question.answer))
            normalised.append(float((values / n_bytes).argmax() == question.answer))
            progress.advance(1, f"accuracy {np.mean(plain):.1%}")
    except KeyboardInterrupt:
        progress.abort()
        if not normalised:
            raise
    except BaseException:
        progress.abort()
        raise
    else:
        progress.finish()
    n = len(normalised)
    return ChoiceScores(n, _share(plain[:n]), _share(normalised), n < len(questions))


def _pair(session: Session, text: str, choice: str) -> Pair:
    """The tokens of a text and those of a choice after it."""
    # Blanks at the end of the question belong to the answer: tokens begin with them.
    kept = text.rstrip(" ")
    before = session.tokenize(kept, add_special=True)
    whole = session.tokenize(text + choice, add_special=True)
    begin = len(before)
    while whole[:begin] != before[:begin]:  # a token that reaches over the border belongs to the answer
        begin -= 1
    begin = max(1, min(begin, len(whole) - 1))
    return whole[:begin], whole[begin:]


def _share(hits: Sequence[float]) -> Estimate:
    mean = sum(hits) / len(hits)
    return Estimate(mean, math.sqrt(mean * (1 - mean) / max(1, len(hits) - 1)))
