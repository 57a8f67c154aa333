"""Running windows of tokens through models, side by side: their logits are reduced pass by pass, and never kept."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EvaluationError
from llmkit.evaluate.journal import NOTHING, Section
from llmkit.evaluate.scores import Scores, Values
from llmkit.evaluate.stored import Recorder, StoredReference
from llmkit.evaluate.windows import Window
from llmkit.kernels.logits import divergences, score_rows
from llmkit.protocols import Progress, Session

Rows = NDArray[np.float32]
_SHOWN: Final = 3  # models in a line of progress
# Tokens of a pass, a power of two, and how many logits they may give: 64 MiB, once in every engine and once here.
_AT_ONCE: Final = 128
_LOGITS: Final = 1 << 24


@dataclass(slots=True)
class _Collected:
    """The arrays of one model, pass after pass."""

    surprises: list[Values] = field(default_factory=list)
    tops: list[NDArray[np.int64]] = field(default_factory=list)
    kl: list[Values] = field(default_factory=list)
    surprise: float = 0.0  # of all
    n_scored: int = 0

    def add(self, part: _Collected) -> None:
        self.surprises += part.surprises
        self.tops += part.tops
        self.kl += part.kl
        self.surprise += sum(float(values.sum()) for values in part.surprises)
        self.n_scored += sum(map(len, part.surprises))

    def to_record(self) -> dict[str, str | None]:
        """Its values as text, every bit of them."""
        return {
            "surprises": _text_of(np.concatenate(self.surprises), "<f8"),
            "tops": _text_of(np.concatenate(self.tops), "<i8"),
            "kl": _text_of(np.concatenate(self.kl), "<f8") if self.kl else None,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, str | None], n: int) -> _Collected | None:
        """What `to_record` gave for `n` tokens; None for anything else."""
        try:
            surprises = _array_of(record["surprises"], "<f8", n)
            tops = _array_of(record["tops"], "<i8", n)
            kl = None if record["kl"] is None else _array_of(record["kl"], "<f8", n)
        except (KeyError, TypeError, ValueError):
            return None
        return cls([surprises], [tops.astype(np.int64)], [] if kl is None else [kl])

    def scores(self) -> Scores:
        return Scores(
            np.concatenate(self.surprises),
            np.concatenate(self.tops),
            np.concatenate(self.kl) if self.kl else None,
        )


@dataclass(frozen=True, slots=True)
class _Reduced:
    """Of the logits of one pass."""

    totals: Values
    surprises: Values
    tops: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it: scores by the models' names, and of how many windows; fewer than there were if interrupted."""

    scores: Mapping[str, Scores]
    n_windows: int
    interrupted: bool


def run(
    sessions: Mapping[str, Session],
    windows: Sequence[Window],
    reference: str | None,
    progress: Progress,
    kept: Mapping[str, Section] | None = None,
    *,
    stored: StoredReference | None = None,
    recorder: Recorder | None = None,
) -> Run:
    """Run all windows through the models, which have the same vocabulary.

    sessions: by name. reference: the name of the one whose distributions the others' are compared with. kept: where
    results are kept, by the models' names; what is there already is not computed. stored: what distributions are
    compared with instead of a model's. recorder: takes those of the reference, or of the only model. Ctrl-C ends the
    run after the first window and keeps what is complete.

    Raises EvaluationError for logits that are not numbers or do not fit; EngineError.
    """
    kept = kept or dict.fromkeys(sessions, NOTHING)
    collected = {name: _Collected() for name in sessions}
    known = [_known(window, kept, reference, is_compared=stored is not None) for window in windows]
    taking = None if recorder is None else (reference or next(iter(sessions)), recorder)
    if taking is not None:
        for found in known:
            found.pop(taking[0], None)  # it is to run
    total = sum(len(window.ids) for window, found in zip(windows, known, strict=True) if len(found) < len(sessions))
    progress.start(f"Evaluating {_named(list(sessions))}", total, "tokens")
    done = 0
    try:
        for window, found in zip(windows, known, strict=True):
            missing = {name: session for name, session in sessions.items() if name not in found}
            if missing:
                needed = missing if reference is None else {reference: sessions[reference]} | missing
                begin = next(iter(collected.values())).n_scored
                new = _one(needed, window, _Reference(reference, stored, begin), taking)
                for name in missing:
                    kept[name].put(window.ids, window.first, value=new[name].to_record())
                found |= new
            for name in sessions:
                collected[name].add(found[name])
            done += 1
            if missing:
                progress.advance(len(window.ids), f"window {done} of {len(windows)}{_state(collected)}")
    except KeyboardInterrupt:
        progress.abort()
        if not done:
            raise
    except BaseException:
        progress.abort()
        raise
    else:
        progress.finish()
    if recorder is not None:
        recorder.cut(next(iter(collected.values())).n_scored)
    return Run({name: part.scores() for name, part in collected.items()}, done, done < len(windows))


def _known(
    window: Window, kept: Mapping[str, Section], reference: str | None, *, is_compared: bool
) -> dict[str, _Collected]:
    """What is kept of a window, by model."""
    found = {}
    for name, section in kept.items():
        record = section.get(window.ids, window.first)
        part = None if record is None else _Collected.from_record(record, window.n_scored)
        if part is not None and bool(part.kl) == (is_compared or reference not in (None, name)):
            found[name] = part
    return found


def _text_of(values: NDArray[Any], dtype: str) -> str:
    return b64encode(values.astype(dtype).tobytes()).decode("ascii")


def _array_of(text: str | None, dtype: str, n: int) -> NDArray[Any]:
    values = np.frombuffer(b64decode(text or "", validate=True), dtype)
    if len(values) != n:
        raise ValueError
    return values


def _state(collected: Mapping[str, _Collected]) -> str:
    values = [np.exp(part.surprise / part.n_scored) for part in list(collected.values())[:_SHOWN]]
    return f", perplexity {' / '.join(f'{value:.3f}' for value in values)}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class _Reference:
    """What a window's distributions are compared with: those of one of the models, stored ones from a token on, or
    nothing."""

    name: str | None
    stored: StoredReference | None
    begin: int

    def divergences(self, rows: Mapping[str, Rows], found: Mapping[str, _Reduced], name: str, at: int) -> Values | None:
        """Of one model's rows, the first of which is number `at` of the window's scored tokens."""
        logits, totals = rows[name], found[name].totals
        if self.stored is not None:
            kl = self.stored.divergences(self.begin + at, logits, totals)
        elif self.name is not None and name != self.name:
            kl = np.empty(len(logits))
            own = rows[self.name]
            divergences(_flat(own), _flat(logits), logits.shape[1], found[self.name].totals, totals, kl)
        else:
            return None
        return np.maximum(kl, 0.0)  # below zero it is rounding


def _one(
    sessions: Mapping[str, Session], window: Window, reference: _Reference, taking: tuple[str, Recorder] | None
) -> dict[str, _Collected]:
    """One window through all models. taking: the model whose distributions are recorded, and what takes them."""
    found = {name: _Collected() for name in sessions}
    targets = np.asarray(window.ids[window.first :], np.int64)
    # The last token passes too, though nothing follows that it predicts: engines compute rows in groups, and those of
    # an incomplete group may be rounded otherwise.
    at_a_time = _rows_at_once(max(session.info.n_vocab for session in sessions.values()))
    passes = {
        name: session.each_logits(window.ids, skip=window.first - 1, at_a_time=at_a_time)
        for name, session in sessions.items()
    }
    rows: dict[str, Rows] = {}
    for begin in range(0, len(targets), at_a_time):
        rows.clear()  # their memory goes before the next are computed
        end = min(begin + at_a_time, len(targets))
        for name, each in passes.items():
            rows[name] = next(each)[: end - begin]
        _check_shapes(rows)
        reduced = {name: _reduce(name, logits, targets[begin:end]) for name, logits in rows.items()}
        for name, part in reduced.items():
            found[name].surprises.append(part.surprises)
            found[name].tops.append(part.tops)
            kl = reference.divergences(rows, reduced, name, begin)
            if kl is not None:
                found[name].kl.append(kl)
        if taking is not None:
            name, recorder = taking
            recorder.add(rows[name], reduced[name].totals)
    return found


def _rows_at_once(n_vocab: int) -> int:
    count = _AT_ONCE
    while count > 1 and count * n_vocab > _LOGITS:
        count //= 2
    return count


def _flat(logits: Rows) -> Rows:
    """One logit after the other, where they lie unless an engine has them in another order."""
    return np.ascontiguousarray(logits).reshape(-1)


def _check_shapes(rows: Mapping[str, Rows]) -> None:
    shapes = {name: part.shape for name, part in rows.items()}
    if len(set(shapes.values())) > 1:
        named = ", ".join(f"{name}: {n} x {vocab}" for name, (n, vocab) in shapes.items())
        raise EvaluationError(f"models with logits of different sizes cannot be compared ({named})")


def _reduce(name: str, logits: Rows, targets: NDArray[np.int64]) -> _Reduced:
    n, n_vocab = logits.shape
    found = _Reduced(np.empty(n), np.empty(n), np.empty(n, np.int64))
    score_rows(_flat(logits), n_vocab, targets, found.totals, found.surprises, found.tops)
    if not np.isfinite(found.surprises).all():
        row = int(np.flatnonzero(~np.isfinite(found.surprises))[0])
        what = "are not all numbers" if np.isnan(logits[row]).any() else "leave no probability for a token of the text"
        raise EvaluationError(f"{name}: its logits {what}; its weights are damaged, or overflow on this text")
    return found
