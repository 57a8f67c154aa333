"""A reference's predictions, stored once in little room, so that it need not run beside every model again.

Of every scored token: the logarithms of its KEPT largest probabilities, and of SAMPLED more, drawn from the rest in
proportion to them. The first part of a KL divergence from the reference is exact then; of the rest the samples' mean is
an estimate without bias, whose error averages out over the tokens; of a single token far from the reference, several
nats, it may be large, so that there the highest percentiles say little. A token takes 1.5 kB, whatever the vocabulary.

The file is a SafeTensors file. Windows come with it: models that are compared must cut the text into the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EvaluationError, FormatError
from llmkit.evaluate.scores import Scores
from llmkit.evaluate.windows import Window
from llmkit.formats.output import publish
from llmkit.formats.safetensors import SafetensorsHeader, read_header
from llmkit.formats.safetensors_layout import plan_safetensors
from llmkit.types import TensorType

KEPT: Final = 128
SAMPLED: Final = 64
SUFFIX: Final = ".safetensors"
_FORMAT: Final = "llmkit reference 1"
_ARRAYS: Final = {
    "windows.ids": (TensorType.I32, "<i4"),
    "windows.lengths": (TensorType.I32, "<i4"),
    "windows.firsts": (TensorType.I32, "<i4"),
    "windows.bytes": (TensorType.I32, "<i4"),
    "surprises": (TensorType.F64, "<f8"),
    "tops": (TensorType.I32, "<i4"),
    "tokens": (TensorType.I32, "<i4"),
    "logarithms": (TensorType.F32, "<f4"),
}

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class About:
    """Whose predictions they are, and of what: the model's name, engine and vocabulary, the text and its protocol."""

    name: str
    engine: str
    n_vocab: int
    text: str
    protocol: str
    context: int


@dataclass(slots=True)
class Recorder:
    """Takes a reference's logits pass by pass, and gives what is to be stored of them."""

    tokens: list[NDArray[np.int32]] = field(default_factory=list)
    logarithms: list[Floats] = field(default_factory=list)

    def add(self, logits: Floats, totals: Doubles) -> None:
        """logits: float32 [n, n_vocab]; totals: the logarithms of their summed exponentials, float64 [n]."""
        for row, total in zip(logits, totals, strict=True):
            tokens, logarithms = compress(row, float(total), seed=len(self.tokens))
            self.tokens.append(tokens)
            self.logarithms.append(logarithms)

    def cut(self, n: int) -> None:
        """Keep what the first `n` tokens gave."""
        del self.tokens[n:]
        del self.logarithms[n:]


def compress(logits: Floats, total: float, seed: int) -> tuple[NDArray[np.int32], Floats]:
    """Tokens and ln p of a distribution: its KEPT likeliest tokens, then SAMPLED of the others by their probability.

    Samples come from equal parts of the others' summed probability, one from each: their error is less than that of
    independent ones. A vocabulary of no more than KEPT + SAMPLED tokens is stored whole, filled up with tokens of no
    probability.
    """
    n_vocab = len(logits)
    if n_vocab <= KEPT + SAMPLED:
        tokens = np.zeros(KEPT + SAMPLED, np.int32)
        logarithms = np.full(KEPT + SAMPLED, -np.inf, np.float32)
        tokens[:n_vocab], logarithms[:n_vocab] = np.arange(n_vocab), logits - total
        return tokens, logarithms
    likeliest = np.argpartition(logits, n_vocab - KEPT)[n_vocab - KEPT :]
    others = np.exp(logits.astype(np.float64) - total)
    others[likeliest] = 0.0
    sums = np.cumsum(others)
    draws = (np.arange(SAMPLED) + np.random.default_rng(seed).random(SAMPLED)) / SAMPLED
    drawn = np.searchsorted(sums, draws * sums[-1], side="right")
    tokens = np.concatenate([likeliest, np.minimum(drawn, n_vocab - 1)]).astype(np.int32)
    return tokens, (logits[tokens] - total).astype(np.float32)


def divergences(tokens: NDArray[np.int32], logarithms: Floats, logits: Floats, totals: Doubles) -> Doubles:
    """The KL divergence of distributions from stored ones, nats, float64 [n].

    tokens, logarithms: [n, KEPT + SAMPLED]. logits: float32 [n, n_vocab]; totals: as in `Recorder.add`.
    """
    # With r = q / p, the sum of p (r - 1 - ln r) over all tokens is the divergence, since that of p (r - 1) is nothing.
    # No term is below zero, and where p and q are near each other terms are small, so that samples of them err little.
    found = np.take_along_axis(logits, tokens.astype(np.int64), 1) - totals[:, np.newaxis]
    shares = np.exp(logarithms.astype(np.float64))
    gaps = np.subtract(found, logarithms, out=np.zeros_like(found), where=shares > 0)
    terms = np.expm1(gaps) - gaps
    if logits.shape[1] <= KEPT + SAMPLED:
        return np.asarray((shares * terms).sum(1))
    rest = np.maximum(0.0, 1 - shares[:, :KEPT].sum(1))
    return np.asarray((shares[:, :KEPT] * terms[:, :KEPT]).sum(1) + rest * terms[:, KEPT:].mean(1))


@dataclass(frozen=True, slots=True)
class StoredReference:
    """What a file holds; arrays stay on disk until they are used. n_bytes: of the text that each window's scored
    tokens stand for. scores: of the reference itself."""

    path: Path
    about: About
    windows: Sequence[Window]
    n_bytes: Sequence[int]
    scores: Scores
    tokens: NDArray[np.int32]
    logarithms: Floats

    def divergences(self, begin: int, logits: Floats, totals: Doubles) -> Doubles:
        """Of the scored tokens from number `begin` on, one for each row of the logits. Raises FormatError."""
        end = begin + len(logits)
        tokens, logarithms = self.tokens[begin:end], self.logarithms[begin:end]
        # Not all at once when the file is opened: it may be large.
        if tokens.min() < 0 or tokens.max() >= logits.shape[1] or not (logarithms <= 1e-3).all():
            raise FormatError(self.path, "holds tokens or probabilities that cannot be; store the reference again")
        return divergences(tokens, logarithms, logits, totals)


def store(
    path: Path,
    about: About,
    windows: Sequence[Window],
    n_bytes: Sequence[int],
    scores: Scores,
    recorder: Recorder,
    *,
    overwrite: bool,
) -> None:
    """Write what was recorded of the windows. Raises OutputError."""
    arrays: dict[str, NDArray[Any]] = {
        "windows.ids": np.concatenate([np.asarray(window.ids) for window in windows]),
        "windows.lengths": np.array([len(window.ids) for window in windows]),
        "windows.firsts": np.array([window.first for window in windows]),
        "windows.bytes": np.array(n_bytes),
        "surprises": scores.surprises,
        "tops": scores.tops,
        "tokens": np.stack(recorder.tokens),
        "logarithms": np.stack(recorder.logarithms),
    }
    facts = {
        "format": _FORMAT,
        "name": about.name,
        "engine": about.engine,
        "n_vocab": str(about.n_vocab),
        "text": about.text,
        "protocol": about.protocol,
        "context": str(about.context),
    }
    layout = plan_safetensors([(name, _ARRAYS[name][0], values.shape) for name, values in arrays.items()], facts)
    with publish(path, layout.total_bytes, overwrite=overwrite) as file:
        file.write_at(layout.header, 0)
        for offset, (name, values) in zip(layout.offsets, arrays.items(), strict=True):
            file.write_at(values.astype(_ARRAYS[name][1]).tobytes(), offset)


def is_stored(path: Path) -> bool:
    """Whether a file is a stored reference. Raises FormatError for a damaged SafeTensors file."""
    return path.suffix == SUFFIX and path.is_file() and read_header(path).metadata.get("format") == _FORMAT


def read_stored(path: Path) -> StoredReference:
    """Open a stored reference. Raises FormatError for one that does not hold together."""
    header = read_header(path)
    facts = header.metadata
    try:
        context, n_vocab = int(facts["context"]), int(facts["n_vocab"])
        about = About(facts["name"], facts["engine"], n_vocab, facts["text"], facts["protocol"], context)
        arrays = {name: _mapped(header, name) for name in _ARRAYS}
        windows = _windows(arrays["windows.ids"], arrays["windows.lengths"], arrays["windows.firsts"])
        n = sum(window.n_scored for window in windows)
        shapes = {
            "windows.bytes": (len(windows),),
            "surprises": (n,),
            "tops": (n,),
            "tokens": (n, KEPT + SAMPLED),
            "logarithms": (n, KEPT + SAMPLED),
        }
        wrong = next((name for name, shape in shapes.items() if arrays[name].shape != shape), None)
        if wrong is not None:
            raise ValueError(f"{wrong} has shape {arrays[wrong].shape}")
        scores = Scores(np.array(arrays["surprises"]), np.array(arrays["tops"], np.int64))
        if not np.isfinite(scores.surprises).all():
            raise ValueError("surprises are not all numbers")
    except KeyError as error:
        raise FormatError(path, f"is no reference that --save-reference stored: it lacks {error}") from None
    except (ValueError, OSError) as error:
        raise FormatError(path, f"is a damaged reference: {error}") from None
    n_bytes = arrays["windows.bytes"].tolist()
    return StoredReference(path, about, windows, n_bytes, scores, arrays["tokens"], arrays["logarithms"])


def _mapped(header: SafetensorsHeader, name: str) -> NDArray[Any]:
    tensor, (type, dtype) = header.tensors[name], _ARRAYS[name]
    if tensor.dtype != type.name or not tensor.nbytes:
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}")
    return np.memmap(header.path, dtype, "r", tensor.offset, tensor.shape)


def _windows(ids: NDArray[np.int32], lengths: NDArray[np.int32], firsts: NDArray[np.int32]) -> list[Window]:
    if not ids.ndim == lengths.ndim == firsts.ndim == 1 or len(lengths) != len(firsts):
        raise ValueError("its windows are no lists")
    if (lengths < 1).any() or (firsts < 1).any() or (firsts >= lengths).any():
        raise ValueError("its windows begin or end where they cannot")
    if int(lengths.astype(np.int64).sum()) != len(ids):
        raise ValueError("its windows have another number of tokens than it holds")
    ends = np.cumsum(lengths, dtype=np.int64)
    return [
        Window(ids[end - length : end].tolist(), int(first))
        for end, length, first in zip(ends, lengths, firsts, strict=True)
    ]


def check_windows(stored: StoredReference, name: str, n_vocab: int, windows: Sequence[Window]) -> None:
    """Raise EvaluationError unless a model's windows are the first ones of the reference's."""
    about = stored.about
    if n_vocab != about.n_vocab:
        problem = f"it has {n_vocab:,} tokens, and the reference {about.n_vocab:,}"
    elif list(windows) != list(stored.windows[: len(windows)]):
        problem = (
            f"its windows are others: the reference was stored for {len(stored.windows)} windows of {about.context} "
            f"tokens of {about.text}, protocol {about.protocol}; give the same text, context and protocol"
        )
    else:
        return
    raise EvaluationError(f"{name} cannot be compared with {stored.path}: {problem}")
