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
) -> Run:
    """Run all windows through the models, which have the same vocabulary.

    sessions: by name. reference: the name of the one whose distributions the others' are compared with. kept: where
    results are kept, by the models' names; what is there already is not computed. Ctrl-C ends the run after the first
    window and keeps what is complete.

    Raises EvaluationError for logits that are not numbers or do not fit; EngineError.
    """
    kept = kept or dict.fromkeys(sessions, NOTHING)
    collected = {name: _Collected() for name in sessions}
    known = [_known(window, kept, reference) for window in windows]
    total = sum(len(window.ids) for window, found in zip(windows, known, strict=True) if len(found) < len(sessions))
    progress.start(f"Evaluating {_named(list(sessions))}", total, "tokens")
    done = 0
    try:
        for window, found in zip(windows, known, strict=True):
            missing = {name: session for name, session in sessions.items() if name not in found}
            if missing:
                needed = missing if reference is None else {reference: sessions[reference]} | missing
                new = _one(needed, window, reference)
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
    return Run({name: part.scores() for name, part in collected.items()}, done, done < len(windows))


def _known(window: Window, kept: Mapping[str, Section], reference: str | None) -> dict[str, _Collected]:
    """What is kept of a window, by model."""
    found = {}
    for name, section in kept.items():
        record = section.get(window.ids, window.first)
        part = None if record is None else _Collected.from_record(record, window.n_scored)
        if part is not None and bool(part.kl) == (reference not in (None, name)):
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


def _one(sessions: Mapping[str, Session], window: Window, reference: str | None) -> dict[str, _Collected]:
    """One window through all models."""
    found = {name: _Collected() for name in sessions}
    targets = np.asarray(window.ids[window.first :], np.int64)
    # The last token passes too, though nothing follows that it predicts: engines compute rows in groups, and those of
    # an incomplete group may be rounded otherwise.
    at_a_time = _rows_at_once(max(session.info.n_vocab for session in sessions.values()))
    passes = {
        name: session.each_logits(window.ids, skip=window.first - 1, at_a_time=at_a_time)
        for name, session in sessions.items()
    }
    begin = 0
    rows: dict[str, Rows] = {}
    for _ in range(0, len(targets) + 1, at_a_time):
        rows.clear()  # their memory goes before the next are computed
        end = min(begin + at_a_time, len(targets))
        for name, each in passes.items():
            rows[name] = next(each)[: end - begin]
        _check_shapes(rows)
        if end == begin:
            break
        expected = _reduce(reference, rows[reference], targets[begin:end]) if reference is not None else None
        for name in rows:
            reduced = expected if name == reference and expected else _reduce(name, rows[name], targets[begin:end])
            found[name].surprises.append(reduced.surprises)
            found[name].tops.append(reduced.tops)
            if reference is not None and expected is not None and name != reference:
                kl, n_vocab = np.empty(end - begin), rows[name].shape[1]
                divergences(_flat(rows[reference]), _flat(rows[name]), n_vocab, expected.totals, reduced.totals, kl)
                found[name].kl.append(np.maximum(kl, 0.0))  # below zero it is rounding
        begin = end
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
