"""Large sets of weights for the searches, whose rare paths few rows would not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
COLUMNS: Final = 1280  # five superblocks: the last group of lanes is never whole
N: Final = 256 * COLUMNS
LARGEST: Final = 3.4028235e38


def _scaled(rng: np.random.Generator, exponents: NDArray[np.float64]) -> NDArray[np.float64]:
    return rng.standard_normal(N) * 10.0 ** np.resize(exponents, N)


def _outliers(rng: np.random.Generator, size: float) -> NDArray[np.float64]:
    weights = 0.01 * rng.standard_normal(N)
    weights[::256] = size * rng.standard_normal(N // 256)
    return weights


def _some_sub_blocks(rng: np.random.Generator, other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ordinary sub-blocks with others scattered among them: neighbouring lanes take different paths."""
    return np.where(np.repeat(rng.random(N // 32) < 0.3, 32), other, rng.standard_normal(N))


LARGE_CASES: Final[dict[str, Callable[[np.random.Generator], Any]]] = {
    "normal": lambda rng: 0.02 * rng.standard_normal(N),
    "normal, another seed": lambda rng: np.random.default_rng(1234).standard_normal(N),
    "cauchy": lambda rng: rng.standard_cauchy(N),
    "student t": lambda rng: 1e-3 * rng.standard_t(2, N),
    "all positive": lambda rng: rng.random(N),
    "all negative": lambda rng: -rng.random(N),
    "far from zero": lambda rng: np.where(np.repeat(rng.random(N // 256) < 0.5, 256), 100, -100) + rng.random(N),
    "zeros": lambda rng: np.zeros(N),
    "constant superblocks": lambda rng: np.repeat(rng.standard_normal(N // 256), 256),
    "constant sub-blocks": lambda rng: np.repeat(rng.standard_normal(N // 32), 32),
    "nearly constant": lambda rng: np.repeat(rng.standard_normal(N // 32), 32) * (1 + 1e-7 * rng.integers(-3, 4, N)),
    "tiny": lambda rng: 1e-30 * rng.standard_normal(N),
    "around the limit for zeros": lambda rng: _scaled(rng, np.linspace(-16, -14, 16 * 40).repeat(16)),
    "float16 denormal scales": lambda rng: _scaled(rng, np.linspace(-10, -3, 40).repeat(256)),
    "denormal": lambda rng: 1e-40 * rng.standard_normal(N),
    "a few denormal units": lambda rng: 2.0**-149 * rng.integers(-5, 6, N),
    "squares overflow": lambda rng: _scaled(rng, np.linspace(18, 21, 40).repeat(32)),
    "huge": lambda rng: np.clip(1e38 * rng.standard_normal(N), -LARGEST, LARGEST),
    "largest": lambda rng: LARGEST * rng.choice([-1, 1], N),
    "outliers": lambda rng: _outliers(rng, 1e3),
    "huge outliers": lambda rng: _outliers(rng, 1e30),
    "sparse": lambda rng: rng.standard_normal(N) * (rng.random(N) < 0.03),
    "whole numbers": lambda rng: rng.integers(-8, 8, N),
    "three values": lambda rng: rng.integers(-1, 2, N),
    "sub-blocks of any size": lambda rng: _scaled(rng, rng.uniform(-8, 8, N // 32).repeat(32)),
    "zeros among others": lambda rng: _some_sub_blocks(rng, np.zeros(N)),
    "negative constants among others": lambda rng: _some_sub_blocks(rng, np.full(N, -0.75)),
    "denormals among others": lambda rng: _some_sub_blocks(rng, 1e-41 * rng.standard_normal(N)),
    "huge among others": lambda rng: _some_sub_blocks(rng, 1e37 * rng.standard_normal(N)),
    "any bits": lambda rng: np.nan_to_num(
        rng.integers(0, 1 << 32, N, np.uint32).view(np.float32), nan=0.0, posinf=1.0, neginf=-1.0
    ),
}


def large_rows(case: str) -> Rows:
    """256 rows of a case; the same on every run."""
    weights = LARGE_CASES[case](np.random.default_rng(sorted(LARGE_CASES).index(case)))
    rows = np.ascontiguousarray(weights, np.float32).reshape(-1, COLUMNS)
    assert np.isfinite(rows).all()
    return rows
