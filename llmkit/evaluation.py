"""The function behind `llmkit eval`: models and a text give perplexities, and divergences from a reference."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmkit.errors import EvaluationError
from llmkit.progress import Silent
from llmkit.protocols import Progress, Session
from llmkit.sessions import Model, as_list, labelled, opened

if TYPE_CHECKING:
    from llmkit.evaluate.journal import Journal, Section
    from llmkit.evaluate.scores import Divergence, Estimate, Scores
    from llmkit.evaluate.stored import StoredReference
    from llmkit.evaluate.windows import Window

DEFAULT_CONTEXT: Final = 512
DEFAULT_PROTOCOL: Final = "sliding"
DEFAULT_WINDOWS: Final = 32  # of Python's own texts, which are long


@dataclass(frozen=True, slots=True)
class ModelScores:
    """What the text showed of one model.

    n_tokens: scored ones. bits_per_byte: of the text that they stand for, which models with other tokens have in
    common. divergence: from the reference, where there is one and this is another model. seconds: of all models that
    ran side by side.
    """

    name: str
    engine: str
    n_tokens: int
    perplexity: Estimate
    bits_per_byte: float
    divergence: Divergence | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "engine": self.engine,
            "tokens": self.n_tokens,
            "perplexity": {"value": self.perplexity.value, "error": self.perplexity.error},
            "bits_per_byte": self.bits_per_byte,
            "divergence": None if self.divergence is None else self.divergence.to_dict(),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured: on which text, in which windows, and of each model, the reference first.

    interrupted: whether Ctrl-C ended it before all windows were through; n_windows are those that count.
    """

    text: str
    protocol: str
    context: int
    n_windows: int
    reference: str | None
    models: tuple[ModelScores, ...]
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "text": self.text,
            "protocol": self.protocol,
            "context": self.context,
            "windows": self.n_windows,
            "reference": self.reference,
            "models": [model.to_dict() for model in self.models],
            "interrupted": self.interrupted,
        }


def evaluate(
    models: Model | Sequence[Model],
    *,
    reference: Model | None = None,
    text: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    protocol: str = DEFAULT_PROTOCOL,
    context: int = DEFAULT_CONTEXT,
    chunks: int | None = None,
    threads: int | None = None,
    resume: str | os.PathLike[str] | Journal | None = None,
    save_reference: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure how well models predict a text, and how far their predictions are from a reference's.

    models: one or several: GGUF files, ONNX folders, checkpoints, named as on the command line, or open sessions.
    reference: such a model; all run side by side over the same tokens then, and must have its vocabulary. Without one
        models run one after the other, each on its own tokens. Or a file that `save_reference` wrote, with which they
        do, too; the text and how it is cut must be the same.
    text: a UTF-8 file; by default the help texts in Python's standard library, of which 32 windows are taken.
    dataset: of the Hugging Face hub, instead of a file, see `llmkit.hubtexts.fetch_text`.
    protocol: how the text is cut, see `llmkit.evaluate.windows`: "sliding", or "llama.cpp" for what llama-perplexity
        prints. context: tokens of a window. chunks: how many windows to take at most.
    threads: by default one per physical core.
    resume: a file that keeps the results of every window; what it holds of these models is not computed again.
    save_reference: where to store the predictions of the reference, or of the only model, for other evaluations; see
        `llmkit.evaluate.stored`. overwrite: whether an existing file may be replaced.

    Ctrl-C ends the work after the first window and keeps what is complete.

    Raises EvaluationError for a text that is too short, models that do not go together, or logits that are no numbers,
    and what loading a model raises.
    """
    from llmkit.evaluate.journal import journal
    from llmkit.evaluate.stored import SUFFIX
    from llmkit.evaluate.texts import PYTHON_DOCS, python_docs, read_text
    from llmkit.formats.output import check_output

    wanted = as_list(models)
    if not wanted and reference is None:
        raise EvaluationError("no model was given")
    if chunks is not None and chunks < 1:
        raise EvaluationError(f"chunks is {chunks}; at least 1 is needed")
    if text is not None and dataset is not None:
        raise EvaluationError("both a text and a dataset were given")
    if dataset is not None:
        from llmkit.hubtexts import fetch_text

        found = fetch_text(dataset, progress=progress)
        name, content = found.name, found.text
    elif text is not None:
        name, content = os.fspath(text), read_text(Path(text))
    else:
        name, content, chunks = PYTHON_DOCS, python_docs(), chunks or DEFAULT_WINDOWS
    if save_reference is not None:
        if reference is None and len(wanted) > 1:
            raise EvaluationError("name the model whose predictions are to be stored as the reference (--reference)")
        if Path(save_reference).suffix != SUFFIX:
            raise EvaluationError(f"{save_reference}: a stored reference is a file *{SUFFIX}")
        check_output(Path(save_reference), overwrite=overwrite)
    stored = _stored(reference)
    if stored is not None and (not wanted or save_reference is not None):
        raise EvaluationError(f"{stored.path} holds stored predictions: name models to compare with them")
    parts: list[_Part] = []
    interrupted = False
    with journal(resume) as results:
        saved = None if save_reference is None else _Saved(Path(save_reference), overwrite)
        how = _How(content, name, protocol, context, chunks, threads, progress or Silent(), results, saved, stored)
        if reference is None or stored is not None:
            for label, model in labelled(wanted).items():
                try:
                    parts.append(_measure({label: model}, None, how))
                except KeyboardInterrupt:  # before a window of this one
                    if not parts:
                        raise
                    interrupted = True
                if interrupted or parts[-1].interrupted:
                    break
        else:
            together = labelled([reference, *(model for model in wanted if model is not reference)])
            parts = [_measure(together, next(iter(together)), how)]
    n_windows = min(part.n_windows for part in parts)
    rows = [model for part in parts for model in part.models]
    if stored is not None:
        rows.insert(0, _stored_scores(stored, n_windows))
    return Evaluation(
        text=name,
        protocol=protocol,
        context=context,
        n_windows=n_windows,
        reference=None if reference is None else rows[0].name,
        models=tuple(rows),
        interrupted=interrupted or any(part.interrupted for part in parts),
    )


@dataclass(frozen=True, slots=True)
class _How:
    """The text and how it is to be run. label: the text's name. stored: what is compared with instead of a model."""

    text: str
    label: str
    protocol: str
    context: int
    chunks: int | None
    threads: int | None
    progress: Progress
    journal: Journal
    saved: _Saved | None
    stored: StoredReference | None


@dataclass(frozen=True, slots=True)
class _Saved:
    """Where the reference's predictions go."""

    path: Path
    overwrite: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """What models that ran together gave."""

    models: Sequence[ModelScores]
    n_windows: int
    interrupted: bool


def _measure(models: Mapping[str, Model], reference: str | None, how: _How) -> _Part:
    from llmkit.evaluate.running import run
    from llmkit.evaluate.stored import About, Recorder, check_windows, store
    from llmkit.evaluate.windows import cut

    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(opened(model, how.context, how.threads)) for name, model in models.items()
        }
        tokens = {name: (_opening(session), session.tokenize(how.text)) for name, session in sessions.items()}
        cuts = {name: cut(ids, how.context, how.protocol, bos, how.chunks) for name, (bos, ids) in tokens.items()}
        first, windows = next(iter(cuts.items()))
        for name, other in cuts.items():
            if sessions[name].info.n_vocab != sessions[first].info.n_vocab or other != windows:
                raise _unlike(first, tokens[first], name, tokens[name], sessions)
        stored, recorder = how.stored, None if how.saved is None else Recorder()
        if stored is not None:
            windows = windows[: len(stored.windows)]
            check_windows(stored, first, sessions[first].info.n_vocab, windows)
        kept = _kept(how.journal, sessions, reference, stored)
        started = time.monotonic()
        result = run(sessions, windows, reference, how.progress, kept, stored=stored, recorder=recorder)
        seconds = time.monotonic() - started
        used = windows[: result.n_windows]
        sizes = [_bytes_of(sessions[first], window) for window in used]
        scores: Mapping[str, Scores] = result.scores
        if recorder is not None and how.saved is not None:
            info = sessions[first].info
            about = About(info.name, info.engine, info.n_vocab, how.label, how.protocol, how.context)
            store(how.saved.path, about, used, sizes, scores[first], recorder, overwrite=how.saved.overwrite)
        rows = [
            ModelScores(
                name=name,
                engine=sessions[name].info.engine,
                n_tokens=len(found.surprises),
                perplexity=found.perplexity,
                bits_per_byte=_bits_per_byte(found, sum(sizes)),
                divergence=_divergence(name, found, scores, reference, stored),
                seconds=seconds,
            )
            for name, found in scores.items()
        ]
    return _Part(rows, result.n_windows, result.interrupted)


def _divergence(
    name: str, found: Scores, scores: Mapping[str, Scores], reference: str | None, stored: StoredReference | None
) -> Divergence | None:
    """From the stored reference, or from the model that is the reference; None of itself, or without one."""
    from llmkit.evaluate.scores import compare

    if stored is not None:
        return compare(found, stored.scores.first(len(found.surprises)))
    return None if reference in (None, name) else compare(found, scores[str(reference)])


def _stored(reference: Model | None) -> StoredReference | None:
    """The reference if it is a file of predictions."""
    from llmkit.evaluate.stored import is_stored, read_stored
    from llmkit.formats.files import user_path

    if not isinstance(reference, str | os.PathLike):
        return None
    path = user_path(os.fspath(reference))
    return read_stored(path) if is_stored(path) else None


def _stored_scores(stored: StoredReference, n_windows: int) -> ModelScores:
    """What a stored reference tells of itself."""
    found = stored.scores.first(sum(window.n_scored for window in stored.windows[:n_windows]))
    return ModelScores(
        name=stored.about.name,
        engine=f"{stored.about.engine}, stored",
        n_tokens=len(found.surprises),
        perplexity=found.perplexity,
        bits_per_byte=_bits_per_byte(found, sum(stored.n_bytes[:n_windows])),
        divergence=None,
        seconds=0.0,
    )


def _kept(
    journal: Journal, sessions: Mapping[str, Session], reference: str | None, stored: StoredReference | None
) -> dict[str, Section] | None:
    """Where the results of each model are kept."""
    from llmkit.evaluate.journal import facts_of, facts_of_session

    if not journal.is_kept:
        return None
    facts = {name: facts_of_session(session) for name, session in sessions.items()}
    compared = facts_of(stored.path) if stored is not None else facts.get(str(reference))
    return {
        name: journal.about(what="window", model=own, reference=compared if name != reference else None)
        for name, own in facts.items()
    }


def _opening(session: Session) -> int | None:
    """The token that the model wants in front of a text, if any."""
    plain, whole = session.tokenize("a"), session.tokenize("a", add_special=True)
    return whole[0] if whole[1 : 1 + len(plain)] == plain else None


def _unlike(
    first: str,
    expected: tuple[int | None, list[int]],
    name: str,
    found: tuple[int | None, list[int]],
    sessions: Mapping[str, Session],
) -> EvaluationError:
    """Why two models do not run over the same tokens."""
    sizes = [sessions[model].info.n_vocab for model in (first, name)]
    if sizes[0] != sizes[1]:
        problem = f"they have {sizes[0]:,} and {sizes[1]:,} tokens"
    elif expected[0] != found[0]:
        problem = f"their texts begin with tokens {expected[0]} and {found[0]}"
    else:
        pairs = enumerate(zip(expected[1], found[1], strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(expected[1]), len(found[1])))
        problem = f"the text becomes other tokens, from number {place:,} on"
    return EvaluationError(
        f"{name} cannot be compared with {first}: {problem}. Without a reference each runs on its own tokens, and bits "
        "per byte can be compared"
    )


def _bits_per_byte(scores: Scores, n_bytes: int) -> float:
    return float(scores.surprises.sum()) / math.log(2) / max(1, n_bytes)


def _bytes_of(session: Session, window: Window) -> int:
    """How many bytes of text the scored tokens stand for."""
    return len(session.detokenize(window.ids[window.first :]).encode())
