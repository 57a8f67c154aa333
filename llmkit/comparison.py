"""The function behind `llmkit compare`: quality, speed, weights and answers of models, in one table and one page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmkit.benchmark import DEFAULT_GENERATED, DEFAULT_PROMPT, Benchmark, ModelSpeed, bench, size_of, versions
from llmkit.errors import EvaluationError, LlmkitError
from llmkit.evaluate.journal import Journal, Section, facts_of, journal
from llmkit.evaluate.records import ComparedModel, Comparison
from llmkit.evaluation import DEFAULT_CONTEXT, Evaluation, ModelScores, evaluate
from llmkit.progress import Silent
from llmkit.protocols import Progress, SamplingOptions, Session
from llmkit.sessions import Model, labels_of, located

if TYPE_CHECKING:
    from llmkit.models import ResolvedModel

DEFAULT_REPETITIONS: Final = 3
QUESTIONS: Final = ("What is gravity?", "Write a Python function that reverses a string.")
_ANSWER_TOKENS: Final = 96


def compare(
    models: Sequence[Model],
    *,
    reference: Model | None = None,
    text: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    context: int = DEFAULT_CONTEXT,
    chunks: int | None = None,
    prompt: Sequence[int] = (DEFAULT_PROMPT,),
    generated: Sequence[int] = (DEFAULT_GENERATED,),
    repetitions: int = DEFAULT_REPETITIONS,
    questions: Sequence[str] = QUESTIONS,
    threads: int | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Evaluate and measure models, and let them answer questions.

    models, reference, text, dataset, context, chunks: as in `llmkit.evaluate`; prompt, generated, repetitions: as in
    `llmkit.bench`, with no lengths for no measurement. questions: are answered greedily, by the models' own templates.
    resume: a file that keeps all results; what it holds of these models is not computed again.
    The errors of the weights are told for GGUF files whose reference is a checkpoint or a GGUF file.

    Ctrl-C ends the work after the first window and keeps what is complete.

    Raises what evaluating and measuring raise.
    """
    progress = progress or Silent()
    first, *others = _located([*([] if reference is None else [reference]), *models])
    everything = dict(zip(labels_of([first, *others]), [first, *others], strict=True))
    with journal(resume) as results:
        quality = evaluate(
            [first, *others] if reference is None else others,
            reference=None if reference is None else first,
            text=text,
            dataset=dataset,
            context=context,
            chunks=chunks,
            threads=threads,
            resume=results,
            progress=progress,
        )
        interrupted = quality.interrupted
        speeds: Benchmark | None = None
        answers: dict[str, list[str]] = {name: [] for name in everything}
        errors: dict[str, dict[str, float]] = {name: {} for name in everything}
        try:
            if not interrupted and (any(prompt) or any(generated)):
                speeds = bench(
                    list(everything.values()),
                    prompt=prompt,
                    generated=generated,
                    repetitions=repetitions,
                    threads=threads,
                    resume=results,
                    progress=progress,
                )
                interrupted = speeds.interrupted
            if not interrupted:
                for name, model in everything.items():
                    answers[name] = _answers(model.path, questions, threads, results)
                for name, model in list(everything.items())[1:] if reference is not None else ():
                    errors[name] = _weight_errors(model.path, first.path, threads, results, progress)
        except KeyboardInterrupt:  # what is complete is worth showing
            interrupted = True
    measured = () if speeds is None else speeds.models
    rows = [
        _row(scores, everything[name].path, speed, answers[name], errors[name], scores.name == quality.reference)
        for name, scores, speed in zip_longest(everything, quality.models, measured)
        if scores is not None
    ]
    return Comparison(
        text=quality.text,
        n_windows=quality.n_windows,
        context=context,
        models=tuple(rows),
        questions=tuple(questions),
        environment=_environment(quality, speeds),
        interrupted=interrupted,
    )


def _located(models: Sequence[Model]) -> list[ResolvedModel]:
    from llmkit.models import ResolvedModel

    if not models:
        raise EvaluationError("no model was given")
    found = []
    for model in models:
        if not isinstance(model, str | os.PathLike | ResolvedModel):
            raise EvaluationError("open sessions cannot be compared: name files or folders")
        found.append(located(model))
    return found


def _row(
    quality: ModelScores,
    path: Path,
    speed: ModelSpeed | None,
    answers: Sequence[str],
    weight_errors: Mapping[str, float],
    is_reference: bool,
) -> ComparedModel:
    divergence = quality.divergence
    return ComparedModel(
        name=quality.name,
        engine=quality.engine,
        size=size_of(path),
        is_reference=is_reference,
        perplexity=(quality.perplexity.value, quality.perplexity.error),
        bits_per_byte=quality.bits_per_byte,
        mean_kl=None if divergence is None else (divergence.mean_kl.value, divergence.mean_kl.error),
        kl_percentiles={} if divergence is None else divergence.kl_percentiles,
        same_top=None if divergence is None else divergence.same_top.value,
        speeds={} if speed is None else {test.name: (test.mean, test.spread) for test in speed.tests},
        load_seconds=None if speed is None else speed.load_seconds,
        memory=None if speed is None else speed.peak_resident,
        weight_errors=weight_errors,
        answers=tuple(answers),
    )


def _weight_errors(
    path: Path, reference: Path, threads: int | None, results: Journal, progress: Progress
) -> dict[str, float]:
    """Of a GGUF file; empty for what cannot be compared so."""
    from llmkit.weights import compare_weights

    if path.suffix.lower() != ".gguf":
        return {}
    kept = _kept(results, "weights", path, reference)
    known = kept.get()
    if isinstance(known, dict):
        return known
    try:
        tensors = compare_weights(path, reference, threads=threads, progress=progress).tensors
    except LlmkitError:  # the file runs, and was measured: its weights are but one part of the comparison
        return {}
    found = {tensor.name: tensor.relative for tensor in tensors}
    kept.put(value=found)
    return found


def _answers(path: Path, questions: Sequence[str], threads: int | None, results: Journal) -> list[str]:
    """Greedy answers; of a model without a chat template how it goes on after the question."""
    from llmkit import runtimes

    kept = _kept(results, "text", path)
    answers = {question: kept.get(question) for question in questions}
    missing = [question for question, answer in answers.items() if not isinstance(answer, str)]
    if missing:
        with runtimes.load(path, n_threads=threads) as session:
            for question in missing:
                answers[question] = _answer(session, question)
                kept.put(question, value=answers[question])
    return [answers[question] for question in questions]


def _kept(results: Journal, what: str, *paths: Path) -> Section:
    """Where results about models are kept, as these versions of everything give them."""
    if not results.is_kept:
        return results.about()
    return results.about(what=what, models=[facts_of(path) for path in paths], versions=versions(), most=_ANSWER_TOKENS)


def _answer(session: Session, question: str) -> str:
    from llmkit.errors import TemplateError

    options = SamplingOptions(temperature=0, max_tokens=_ANSWER_TOKENS)
    try:
        parts = list(session.chat([{"role": "user", "content": question}], options))
    except TemplateError:
        parts = list(session.generate(question, options))
    return "".join(parts).strip()


def _environment(evaluation: Evaluation, speeds: Benchmark | None) -> dict[str, str]:
    engines = dict.fromkeys(model.engine for model in evaluation.models)
    found = {"engines": ", ".join(engines)}
    if speeds is not None:
        found |= {
            "processor": f"{speeds.machine}, {speeds.models[0].n_threads} threads",
            "Python": speeds.python,
            "versions": ", ".join(f"{name} {version}" for name, version in speeds.versions.items()),
            "runs of each test": str(speeds.repetitions),
        }
    return found
