"""What is noted of every scored token, and the statistics of it, by the formulas of llama-perplexity.

(llama.cpp, tools/perplexity/perplexity.cpp.) Errors are standard errors of means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# Those that llama-perplexity prints; the median is that of 50.
KL_PERCENTILES: Final = (100.0, 99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1, 0.0)
PROBABILITY_PERCENTILES: Final = (100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or what follows from one, with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.6g} ± {self.error:.2g}"


@dataclass(frozen=True, slots=True)
class Scores:
    """What is noted of each scored token, in the order of the text.

    surprises: -ln p, nats, float64 [n]. tops: the most likely token in its place, int64 [n]. kl: the divergence from
    the reference's distribution, where there is one, nats, float64 [n].
    """

    surprises: Values
    tops: NDArray[np.int64]
    kl: Values | None = None

    def first(self, n: int) -> Scores:
        """Of the first `n` tokens."""
        return Scores(self.surprises[:n], self.tops[:n], None if self.kl is None else self.kl[:n])

    @property
    def perplexity(self) -> Estimate:
        mean = mean_of(self.surprises)
        value = _exp(mean.value)
        return Estimate(value, value * mean.error)


@dataclass(frozen=True, slots=True)
class Divergence:
    """How one model's distributions differ from a reference's, over the same tokens.

    mean_kl: nats. kl_percentiles and delta_p_percentiles: by percentage. same_top: share of tokens with the same most
    likely one. mean_delta_p, rms_delta_p: of the text's own tokens' probabilities, this model's less the reference's.
    ln_ratio, ratio, difference: of the perplexity and the reference's. correlation: of the logarithms of both.
    """

    mean_kl: Estimate
    kl_percentiles: dict[float, float]
    same_top: Estimate
    mean_delta_p: Estimate
    rms_delta_p: Estimate
    delta_p_percentiles: dict[float, float]
    ln_ratio: Estimate
    ratio: Estimate
    difference: Estimate
    correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kl": {**_plain(self.mean_kl), "percentiles": _named(self.kl_percentiles)},
            "same_top": _plain(self.same_top),
            "delta_p": {
                **_plain(self.mean_delta_p),
                "rms": _plain(self.rms_delta_p),
                "percentiles": _named(self.delta_p_percentiles),
            },
            "ln_perplexity_ratio": _plain(self.ln_ratio),
            "perplexity_ratio": _plain(self.ratio),
            "perplexity_difference": _plain(self.difference),
            "ln_perplexity_correlation": self.correlation,
        }


def compare(scores: Scores, reference: Scores) -> Divergence:
    """The statistics of `scores`, which have `kl`, beside those of the reference for the same tokens."""
    assert scores.kl is not None
    q, p = mean_of(scores.surprises), mean_of(reference.surprises)
    n = len(scores.surprises)
    covariance = float(np.mean(scores.surprises * reference.surprises)) - q.value * p.value
    covariance /= max(1, n - 1)
    product = q.error * p.error
    ln_ratio = Estimate(q.value - p.value, _root(q.error**2 + p.error**2 - 2 * covariance))
    ratio = _exp(ln_ratio.value)
    one, other = scores.perplexity, reference.perplexity
    gap = _root(one.error**2 + other.error**2 - 2 * one.value * other.value * covariance)
    delta = np.exp(-scores.surprises) - np.exp(-reference.surprises)
    squares = mean_of(delta**2)
    rms = math.sqrt(squares.value)
    same = float((scores.tops == reference.tops).mean())
    return Divergence(
        mean_kl=mean_of(scores.kl),
        kl_percentiles=_percentiles(scores.kl, KL_PERCENTILES),
        same_top=Estimate(same, _root(same * (1 - same) / max(1, n - 1))),
        mean_delta_p=mean_of(delta),
        rms_delta_p=Estimate(rms, 0.5 / rms * squares.error if rms else 0.0),
        delta_p_percentiles=_percentiles(delta, PROBABILITY_PERCENTILES),
        ln_ratio=ln_ratio,
        ratio=Estimate(ratio, ratio * ln_ratio.error),
        difference=Estimate(one.value - other.value, gap),
        correlation=covariance / product if product else 1.0,
    )


def mean_of(values: Values) -> Estimate:
    """The mean and its standard error."""
    mean = float(values.mean())
    variance = float(np.mean(values**2)) - mean**2
    return Estimate(mean, _root(variance / max(1, len(values) - 1)))


def _percentiles(values: Values, wanted: tuple[float, ...]) -> dict[float, float]:
    return dict(zip(wanted, np.percentile(values, wanted).tolist(), strict=True))


def _root(value: float) -> float:
    """The square root of what is no less than zero but for rounding."""
    return math.sqrt(max(0.0, value))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # more would overflow


def _plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "error": estimate.error}


def _named(percentiles: dict[float, float]) -> dict[str, float]:
    return {f"{percentage:g}": value for percentage, value in percentiles.items()}
