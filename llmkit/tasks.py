"""The functions behind `llmkit eval --choices` and `--tasks`: models answer questions, and are right or wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmkit.errors import DependencyError, EvaluationError
from llmkit.progress import Silent
from llmkit.protocols import Progress, Session
from llmkit.sessions import Model, as_list, labelled, opened

if TYPE_CHECKING:
    from llmkit.evaluate.choices import ChoiceScores
    from llmkit.evaluate.harness import TaskScore
    from llmkit.evaluate.journal import Journal, Section

_BRANCHES: Final = 8  # answers of a question that pass the model together


def ask(
    models: Model | Sequence[Model],
    questions: str | os.PathLike[str],
    *,
    context: int | None = None,
    threads: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, ChoiceScores]:
    """Let models choose answers, and tell how often each is right, by its name.

    questions: a JSON file, see `llmkit.evaluate.choices.read_questions`. context: most tokens of a question with an
        answer; by default the model's own, at most 4096. resume: a file that keeps likelihoods; what it holds of these
        models is not computed again.

    Ctrl-C ends the work after the first question and keeps what is complete.

    Raises FormatError for the file, and what loading and running a model raise.
    """
    from llmkit.evaluate.choices import answer, read_questions
    from llmkit.evaluate.journal import journal

    asked = read_questions(Path(questions))
    found: dict[str, ChoiceScores] = {}
    with journal(resume) as results:
        for name, model in labelled(as_list(models)).items():
            try:
                with opened(model, context, threads, n_branches=_BRANCHES) as session:
                    found[name] = answer(session, asked, progress or Silent(), _kept(results, session))
            except KeyboardInterrupt:  # before a question of this one
                if not found:
                    raise
                break
            if found[name].interrupted:
                break
    return found


def run_tasks(
    models: Model | Sequence[Model],
    tasks: str | Sequence[str],
    *,
    folders: Sequence[str | os.PathLike[str]] = (),
    limit: int | None = None,
    n_few_shot: int | None = None,
    context: int | None = None,
    threads: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[TaskScore]]:
    """Run tasks of EleutherAI's lm-evaluation-harness, and tell every model's scores, by its name.

    tasks: names of the harness's tasks, which fetch their data from the hub, or YAML files of one's own. folders: hold
        further tasks, by their names; such files may name Python functions, which the harness runs: take none from
        strangers.
    limit: most samples of every task. n_few_shot: examples in front of each question; by default as the task says.
    context: most tokens of a question with an answer, which is cut at its beginning if it has more; by default the
        model's own, at most 4096.
    resume: a file that keeps answers; what it holds of these models is not computed again.

    Ctrl-C keeps the models that are through.

    Raises DependencyError without the harness (extra `tasks`), EvaluationError for tasks that it does not know or
    cannot run, and what loading and running a model raise.
    """
    from llmkit.evaluate.journal import journal

    wanted = [tasks] if isinstance(tasks, str) else list(tasks)
    if not wanted:
        raise EvaluationError("no task was given")
    try:
        from llmkit.evaluate.harness import find_tasks, run_harness
    except ImportError as error:
        raise DependencyError("lm-eval", "tasks", "running tasks") from error
    manager = find_tasks(wanted, [os.fspath(folder) for folder in folders])
    found = {}
    with journal(resume) as results:
        for name, model in labelled(as_list(models)).items():
            try:
                with opened(model, context, threads, n_branches=_BRANCHES) as session:
                    found[name] = run_harness(
                        session,
                        wanted,
                        manager,
                        limit=limit,
                        n_few_shot=n_few_shot,
                        progress=progress or Silent(),
                        kept=_kept(results, session),
                    )
            except KeyboardInterrupt:
                if not found:
                    raise
                break
    return found


def _kept(results: Journal, session: Session) -> Section:
    """Where a model's answers are kept."""
    from llmkit.evaluate.journal import facts_of_session

    if not results.is_kept:
        return results.about()
    return results.about(what="answer", model=facts_of_session(session), context=session.info.n_context)
