"""What a comparison of models holds: quality, speed, weights and answers of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One model in a comparison; what was not measured is None or empty.

    size: bytes of its files. perplexity with its standard error; bits_per_byte: of the text. mean_kl, its error, and
    kl_percentiles by percentage: nats from the reference's distributions; same_top: share of tokens with the same most
    likely one. speeds: tokens a second by the name of the test (pp512, tg128), with the standard deviation of the runs.
    memory: bytes at most, mapped files included. weight_errors: relative RMS error by tensor. answers: to each of the
    comparison's questions.
    """

    name: str
    engine: str
    size: int
    is_reference: bool
    perplexity: tuple[float, float]
    bits_per_byte: float
    mean_kl: tuple[float, float] | None = None
    kl_percentiles: Mapping[float, float] = field(default_factory=dict)
    same_top: float | None = None
    speeds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    load_seconds: float | None = None
    memory: int | None = None
    weight_errors: Mapping[str, float] = field(default_factory=dict)
    answers: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models over the same text and on the same machine.

    environment: what to name beside the figures, by its name.

    interrupted: whether Ctrl-C ended it, so that windows, timings or answers are missing.
    """

    text: str
    n_windows: int
    context: int
    models: Sequence[ComparedModel]
    questions: Sequence[str]
    environment: Mapping[str, str]
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "text": self.text,
            "windows": self.n_windows,
            "context": self.context,
            "questions": list(self.questions),
            "environment": dict(self.environment),
            "interrupted": self.interrupted,
            "models": [
                {
                    "name": m.name,
                    "engine": m.engine,
                    "size": m.size,
                    "is_reference": m.is_reference,
                    "perplexity": {"value": m.perplexity[0], "error": m.perplexity[1]},
                    "bits_per_byte": m.bits_per_byte,
                    "kl": None
                    if m.mean_kl is None
                    else {
                        "value": m.mean_kl[0],
                        "error": m.mean_kl[1],
                        "percentiles": {f"{p:g}": value for p, value in m.kl_percentiles.items()},
                    },
                    "same_top": m.same_top,
                    "speeds": {name: {"mean": mean, "spread": spread} for name, (mean, spread) in m.speeds.items()},
                    "load_seconds": m.load_seconds,
                    "memory": m.memory,
                    "weight_errors": dict(m.weight_errors),
                    "answers": list(m.answers),
                }
                for m in self.models
            ],
        }


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that no other one beats in both coordinates, of which less is better; by the first."""
    front: list[str] = []
    best = float("inf")
    for name, (_, second) in sorted(points.items(), key=lambda item: item[1]):
        if second < best:
            front.append(name)
            best = second
    return front


def front_of(models: Sequence[ComparedModel]) -> list[str]:
    """The models that no smaller one beats in divergence."""
    return pareto({m.name: (float(m.size), m.mean_kl[0]) for m in models if m.mean_kl is not None})
