"""Any session as a model of EleutherAI's lm-evaluation-harness, and running its tasks.

Tokens, borders between context and continuation, prefix tokens and rolling windows are those of the harness's own `hf`
models, so that results compare with published ones.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any, Final
from unittest.mock import patch

from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from llmkit.errors import EvaluationError, LlmkitError
from llmkit.evaluate.journal import NOTHING, Section
from llmkit.evaluate.likelihoods import likelihoods
from llmkit.evaluate.scores import Estimate
from llmkit.protocols import Progress, SamplingOptions, Session

_GENERATED: Final = 256  # tokens, where a task does not say; as the harness's own models do


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task. error: NaN where the harness gives none."""

    task: str
    version: str
    metric: str
    filter: str
    n_few_shot: int
    n_samples: int
    score: Estimate
    higher_is_better: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        error = None if math.isnan(self.score.error) else self.score.error
        return asdict(self) | {"score": {"value": self.score.value, "error": error}}


class SessionModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A session, as the harness wants models."""

    def __init__(self, session: Session, progress: Progress, kept: Section = NOTHING) -> None:
        super().__init__()
        self._session = session
        self._kept = kept
        self._progress = progress
        info = session.info
        prefix = info.bos if info.bos is not None else info.eos
        if prefix is None:
            raise EvaluationError(f"{info.name}: has neither a first nor a last token, which tasks need")
        self._prefix = prefix

    @property
    def eot_token_id(self) -> int:
        return self._prefix if self._session.info.eos is None else self._session.info.eos

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def max_length(self) -> int:
        return self._session.info.n_context

    @property
    def tokenizer_name(self) -> str:
        return self._session.info.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._session.tokenize(string, add_special=add_special_tokens is not False, parse_special=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_more: Any
    ) -> list[tuple[float, bool]]:
        found = self._scored([(context, continuation) for _, context, continuation in requests])
        for (texts, _, _), result in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return found

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        fitting = [_shortened(context, continuation, self.max_length) for context, continuation in pairs]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        # An empty continuation is certain.
        numbers = [number for number, (_, continuation) in enumerate(fitting) if continuation]
        self._progress.start(f"Asking {self._session.info.name}", len(pairs), "answers")
        self._progress.advance(len(pairs) - len(numbers))
        with self._reported():
            for place, result in likelihoods(self._session, [fitting[number] for number in numbers], self._kept):
                found[numbers[place]] = (result.value, result.is_greedy)
                self._progress.advance(1)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self._prefix,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for text in texts
        ]
        values = iter(self._scored([window for several in windows for window in several]))
        totals = [sum(next(values)[0] for _ in several) for several in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        self._progress.start(f"Asking {self._session.info.name}", len(requests), "answers")
        answers = []
        with self._reported():
            for request in requests:
                context, settings = request.args
                is_sampled = bool(settings.get("do_sample", False))  # then each answer to a question is another one
                found = None if is_sampled else self._kept.get(context, settings)
                if not isinstance(found, str):
                    found = self._generated(context, dict(settings))
                    if not is_sampled:
                        self._kept.put(context, settings, value=found)
                answers.append(found)
                self.cache_hook.add_partial("generate_until", request.args, answers[-1])
                self._progress.advance(1)
        return answers

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Ends the progress, well or not."""
        try:
            yield
        except BaseException:
            self._progress.abort()
            raise
        self._progress.finish()

    def _generated(self, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        limit = int(settings.get("max_gen_toks", _GENERATED))
        sampled = bool(settings.get("do_sample", False))
        options = SamplingOptions(
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_k=int(settings.get("top_k", 0)),
            top_p=float(settings.get("top_p", 1.0)),
            min_p=0.0,
            max_tokens=limit,
            stop=tuple(stop for stop in stops if stop),
        )
        room = self.max_length - limit
        if room < 1:
            raise EvaluationError(
                f"answers of {limit} tokens do not fit a context of {self.max_length}: take a larger one (-c, context)"
            )
        ids = self.tok_encode(context)[-room:]
        return "".join(self._session.generate(ids or [self._prefix], options))


def _shortened(context: list[int], continuation: list[int], room: int) -> tuple[list[int], list[int]]:
    """Without what does not fit at the beginning: the last token is only predicted, and takes no room."""
    if len(continuation) > room:
        raise EvaluationError(
            f"an answer of {len(continuation):,} tokens does not fit a context of {room:,}: take a larger one (-c, "
            "context)"
        )
    return context[-(room + 1 - len(continuation)) :], continuation


def find_tasks(tasks: Sequence[str], folders: Sequence[str]) -> TaskManager:
    """The harness's list of tasks, with those in the folders; without its own, which take seconds, if none is needed.

    Raises EvaluationError for a folder that the harness does not understand.
    """
    with _harness_errors(tasks):
        if folders:
            manager = TaskManager(include_path=list(folders), include_defaults=False)
            if set(tasks) <= set(manager.all_tasks):
                return manager
        return TaskManager(include_path=list(folders) or None)


def run_harness(
    session: Session,
    tasks: Sequence[str],
    manager: TaskManager,
    *,
    limit: int | None,
    n_few_shot: int | None,
    progress: Progress,
    kept: Section = NOTHING,
) -> list[TaskScore]:
    """Run tasks of the harness.

    tasks: names, or YAML files. manager: knows them, see `find_tasks`. limit: most samples of each. n_few_shot:
    examples in front of each question; by default as the task says. kept: where answers are kept.

    Raises EvaluationError for tasks that the harness does not know or cannot run; what the session raises.
    """
    model = SessionModel(session, progress, kept)
    with _harness_errors(tasks):
        found = simple_evaluate(
            model=model,
            tasks=list(tasks),
            num_fewshot=n_few_shot,
            limit=limit,
            log_samples=False,
            task_manager=manager,
        )
    return _scores(found)


@contextmanager
def _harness_errors(tasks: Sequence[str]) -> Iterator[None]:
    """What the harness raises as EvaluationError; what it prints of itself would break the progress."""
    try:
        # It would also ask git, which answers on the process's own standard error, for the commit of the folder.
        asks_git = patch("lm_eval.evaluator.get_git_commit_hash", lambda: None, create=True)
        with asks_git, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    except LlmkitError:
        raise
    except Exception as error:  # its own, those of datasets, of the network, of tasks
        said = str(error).strip().splitlines()
        raise EvaluationError(
            f"tasks {', '.join(tasks)}: lm-evaluation-harness: {said[0] if said else type(error).__name__}"
        ) from error


def _scores(found: dict[str, Any]) -> list[TaskScore]:
    scores = []
    for task, values in found["results"].items():
        samples = found.get("n-samples", {}).get(task, {})
        for key, value in values.items():
            metric, comma, filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filter}")
            scores.append(
                TaskScore(
                    task=task,
                    version=str(found.get("versions", {}).get(task, "")),
                    metric=metric,
                    filter=filter,
                    n_few_shot=int(found.get("n-shot", {}).get(task, 0)),
                    n_samples=int(samples.get("effective", 0)),
                    score=Estimate(float(value), float(error) if isinstance(error, int | float) else float("nan")),
                    higher_is_better=found.get("higher_is_better", {}).get(task, {}).get(metric),
                )
            )
    return scores
