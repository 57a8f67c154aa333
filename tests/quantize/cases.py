"""Weights to encode: one family of rows per way in which encoders go wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
COLUMNS: Final = 512
LARGEST: Final = float(np.finfo(np.float32).max)


def _normal(rng: np.random.Generator) -> Rows:
    return 0.02 * rng.standard_normal((16, COLUMNS), np.float32)


def _bf16(rng: np.random.Generator) -> Rows:
    """As most checkpoints have them: few distinct magnitudes, so extremes are often reached twice."""
    return (_normal(rng).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _heavy_tailed(rng: np.random.Generator) -> Rows:
    return rng.standard_t(2, (16, COLUMNS)).astype(np.float32)


def _one_sided(rng: np.random.Generator) -> Rows:
    rows = rng.random((8, COLUMNS), np.float32)
    rows[4:] *= -1
    return rows


def _grid(rng: np.random.Generator) -> Rows:
    """Small multiples of 1/16: quotients that lie exactly between two codes, and extremes of both signs."""
    return rng.integers(-128, 129, (16, COLUMNS)).astype(np.float32) / np.float32(16)


def _constant(rng: np.random.Generator) -> Rows:
    values = np.array([1, -1, 0.3, -0.3, 1e-4, 1e-20, -3e-39, 3.3e38, -LARGEST, 65504, 65520, 7e-8], np.float32)
    return np.repeat(values[:, None], COLUMNS, axis=1)


def _zeros(rng: np.random.Generator) -> Rows:
    rows = np.zeros((6, COLUMNS), np.float32)
    rows[1] = -0.0
    rows[2:4] = np.where(rng.random((2, COLUMNS)) < 0.5, np.float32(-0.0), np.float32(0.0))
    # Zeros of both signs as the smallest and as the largest of a block.
    rows[4] = np.where(rng.random(COLUMNS) < 0.5, rows[2], rng.random(COLUMNS, np.float32))
    rows[5] = np.where(rng.random(COLUMNS) < 0.5, rows[3], -rng.random(COLUMNS, np.float32))
    return rows


def _one_weight(rng: np.random.Generator) -> Rows:
    """Zeros but for one weight per block of 32."""
    rows = np.zeros((8, COLUMNS // 32, 32), np.float32)
    at = rng.integers(0, 32, (*rows.shape[:2], 1))
    np.put_along_axis(rows, at, rng.standard_normal(at.shape).astype(np.float32), axis=-1)
    return rows.reshape(8, COLUMNS)


def _tiny(rng: np.random.Generator) -> Rows:
    """Scales down to those whose float16 underflows, and where 1 / scale is about to overflow."""
    scales = np.logspace(-5, -38, 16, dtype=np.float32)[:, None]
    return (rng.standard_normal((16, COLUMNS), np.float32) * scales).astype(np.float32)


def _denormal(rng: np.random.Generator) -> Rows:
    """Mantissa bits without an exponent: 1 / scale is infinite, and some quotients are NaN."""
    width = rng.integers(1, 24, (16, COLUMNS), np.uint32)
    bits = rng.integers(0, 1 << width, dtype=np.uint32)
    return (bits | rng.integers(0, 2, bits.shape, np.uint32) << np.uint32(31)).view(np.float32)


def _huge(rng: np.random.Generator) -> Rows:
    """Up to the largest float32: scales that are infinite in float16, and ranges that overflow float32."""
    limits = np.logspace(4, np.log10(LARGEST), 16)[:, None] * (1 - 1e-7)
    return (rng.uniform(-1, 1, (16, COLUMNS)) * limits).astype(np.float32)


def _single_huge(rng: np.random.Generator) -> Rows:
    rows = _normal(rng)
    for row, value in zip(rows, np.logspace(0, 38, len(rows)), strict=True):
        row[rng.integers(COLUMNS)] = value if rng.random() < 0.5 else -value
    return rows


def _any_exponent(rng: np.random.Generator) -> Rows:
    """Weights of all magnitudes side by side."""
    return (rng.standard_normal((16, COLUMNS)) * 10.0 ** rng.uniform(-46, 37, (16, COLUMNS))).astype(np.float32)


CASES: Final[dict[str, Callable[[np.random.Generator], Rows]]] = {
    "normal": _normal,
    "bf16": _bf16,
    "heavy-tailed": _heavy_tailed,
    "one-sided": _one_sided,
    "grid": _grid,
    "constant": _constant,
    "zeros": _zeros,
    "one weight": _one_weight,
    "tiny": _tiny,
    "denormal": _denormal,
    "huge": _huge,
    "single huge": _single_huge,
    "any exponent": _any_exponent,
}


def rows_of(case: str) -> Rows:
    """The rows of a case: the same on every run."""
    rows = CASES[case](np.random.default_rng(sorted(CASES).index(case)))
    assert np.isfinite(rows).all()
    return np.ascontiguousarray(rows, np.float32)


# The importance of columns, as an importance matrix gives it: mean squares of activations.
IMPORTANCE: Final[dict[str, Callable[[np.random.Generator, int], NDArray[Any]]]] = {
    "ordinary": lambda rng, n: rng.standard_normal(n) ** 2,
    "heavy-tailed": lambda rng, n: rng.standard_t(2, n) ** 2,
    "ones": lambda rng, n: np.ones(n),
    "some zeros": lambda rng, n: rng.standard_normal(n) ** 2 * (rng.random(n) < 0.5),
    "few not zero": lambda rng, n: rng.standard_normal(n) ** 2 * (rng.random(n) < 0.03),
    "zero runs": lambda rng, n: np.repeat(rng.random(n // 16) < 0.5, 16) * rng.standard_normal(n) ** 2,
    "zeros": lambda rng, n: np.zeros(n),
    "tiny": lambda rng, n: 1e-30 * rng.standard_normal(n) ** 2,
    "denormal": lambda rng, n: 2.0**-149 * rng.integers(0, 100, n),
    "huge": lambda rng, n: rng.random(n) * LARGEST,
    "any exponent": lambda rng, n: 10.0 ** rng.uniform(-46, 38, n),
}


def importance_of(kind: str, columns: int = COLUMNS) -> NDArray[np.float32]:
    """One value per column, never negative; the same on every run."""
    rng = np.random.default_rng(sorted(IMPORTANCE).index(kind))
    values = np.ascontiguousarray(IMPORTANCE[kind](rng, columns), np.float32)
    assert np.isfinite(values).all()
    return values


# Two attention matrices and a feed-forward one, from the first, a middle and the last block.
_REAL: Final = ("blk.0.attn_q.weight", "blk.15.attn_k.weight", "blk.29.ffn_down.weight")


def smollm2_rows(gguf_file: Path) -> Rows:
    """Real weights, 512 a row. The file is Q4_1: a seeded uniform value inside its quantisation cell is added to
    each weight, since values on that type's grid would flatter an encoder."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    rng = np.random.default_rng(0)
    found = {t.name: t for t in GGUFReader(gguf_file).tensors if t.name in _REAL}
    parts = []
    for name in _REAL:
        tensor = found[name]
        assert tensor.tensor_type.name == "Q4_1"
        scale = np.ascontiguousarray(tensor.data).reshape(-1, 20)[:, :2].copy().view(np.float16).astype(np.float32)
        weights = dequantize(tensor.data, tensor.tensor_type).reshape(-1, 32)
        cell = rng.uniform(-0.5, 0.5, weights.shape).astype(np.float32)
        parts.append((weights + scale * cell).reshape(-1, COLUMNS))
    return np.concatenate(parts)
