"""Reductions of logits: surprise, most likely token and KL divergence, row by row, without copies.

Exponentials are taken of sixteen logits side by side, in float32 with an error of one unit in the last place or two,
and added up in float64 every few steps. Nothing checks bounds: see llmkit.evaluate.running.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.intlanes import bits_of, from_bits
from llmkit.kernels.jit import FLOATS_IN, helper, kernel, source, target
from llmkit.kernels.lanes import LANES, load, select, splat, store

_DOUBLES_IN: Final = source(types.float64)
_DOUBLES_OUT: Final = target(types.float64)
_LONGS_IN: Final = source(types.int64)
_LONGS_OUT: Final = target(types.int64)

_STEPS: Final = 32  # of sixteen sums each, before they are added up in float64
_MAGIC: Final = np.float32(1.5 * 2**23)  # to which a number below 2^22 is added to be rounded to a whole one
_MAGIC_BITS: Final = 0x4B400000
_LOWEST: Final = np.float32(-87)  # its exponential is nearly the smallest normal number
_LOG2_E: Final = np.float32(1.44269504)
# ln 2 in two parts, of which the first has so few bits that its product with a small whole number is exact; and the
# coefficients of Cephes' expf (Moshier, netlib), for what is left after whole powers of two.
_LN2_HIGH: Final = np.float32(0.693359375)
_LN2_LOW: Final = np.float32(-2.12194440e-4)
_C0: Final = np.float32(1.9875691500e-4)
_C1: Final = np.float32(1.3981999507e-3)
_C2: Final = np.float32(8.3334519073e-3)
_C3: Final = np.float32(4.1665795894e-2)
_C4: Final = np.float32(1.6666665459e-1)
_C5: Final = np.float32(5.0000001201e-1)
_ONE: Final = np.float32(1)
_ZERO: Final = np.float32(0)


@helper
def _exp(x: Any) -> Any:
    """e^x of lanes that are not above zero; what is below -87 counts as that, and NaN stays NaN."""
    x = select(x < splat(_LOWEST), splat(_LOWEST), x)
    shifted = x * splat(_LOG2_E) + splat(_MAGIC)
    whole = shifted - splat(_MAGIC)
    r = x - whole * splat(_LN2_HIGH) - whole * splat(_LN2_LOW)
    y = splat(_C0)
    y = y * r + splat(_C1)
    y = y * r + splat(_C2)
    y = y * r + splat(_C3)
    y = y * r + splat(_C4)
    y = y * r + splat(_C5)
    y = y * r * r + r + splat(_ONE)
    return y * from_bits((bits_of(shifted) - _MAGIC_BITS + 127) << 23)


@helper
def _sum(lanes: Any, scratch: Any) -> Any:
    """The sum of sixteen lanes, in float64."""
    store(scratch, 0, lanes)
    total = 0.0
    for i in range(LANES):
        total += np.float64(scratch[i])
    return total


@helper
def _largest(logits: Any, begin: Any, n_vocab: Any, scratch: Any) -> Any:
    """The largest logit of a row, or NaN where there is one in the first place; others show in the sums."""
    largest = logits[begin]
    whole = n_vocab // LANES * LANES
    if whole:
        lanes = load(logits, begin)
        for i in range(LANES, whole, LANES):
            found = load(logits, begin + i)
            lanes = select(found > lanes, found, lanes)
        store(scratch, 0, lanes)
        for i in range(LANES):
            largest = max(largest, scratch[i])
    for i in range(whole, n_vocab):
        largest = max(largest, logits[begin + i])
    return largest


@kernel(FLOATS_IN, types.int64, _LONGS_IN, _DOUBLES_OUT, _DOUBLES_OUT, _LONGS_OUT)
def score_rows(
    logits: NDArray[np.float32],
    n_vocab: int,
    targets: NDArray[np.int64],
    totals: NDArray[np.float64],
    surprises: NDArray[np.float64],
    tops: NDArray[np.int64],
) -> None:
    """Of each row the logarithm of the summed exponentials, -ln p of its target, and the first most likely token."""
    scratch = np.empty(LANES, np.float32)
    whole = n_vocab // LANES * LANES
    for row in range(targets.size):
        begin = row * n_vocab
        largest = _largest(logits, begin, n_vocab, scratch)
        total = 0.0
        for start in range(0, whole, _STEPS * LANES):
            lanes = splat(_ZERO)
            for i in range(start, min(start + _STEPS * LANES, whole), LANES):
                lanes = lanes + _exp(load(logits, begin + i) - splat(largest))
            total += _sum(lanes, scratch)
        for i in range(whole, n_vocab):
            total += math.exp(np.float64(logits[begin + i] - largest))
        totals[row] = np.float64(largest) + math.log(total)
        surprises[row] = totals[row] - np.float64(logits[begin + targets[row]])
        top = 0
        while top < n_vocab - 1 and logits[begin + top] != largest:
            top += 1
        tops[row] = top


@kernel(FLOATS_IN, FLOATS_IN, types.int64, _DOUBLES_IN, _DOUBLES_IN, _DOUBLES_OUT)
def divergences(
    reference: NDArray[np.float32],
    logits: NDArray[np.float32],
    n_vocab: int,
    reference_totals: NDArray[np.float64],
    totals: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """The KL divergence of each row's distribution from the reference's, in nats; `totals` are from `score_rows`."""
    scratch = np.empty(LANES, np.float32)
    whole = n_vocab // LANES * LANES
    for row in range(out.size):
        begin = row * n_vocab
        # ln p - ln q is the difference of the logits less that of the totals. Where the two models agree it is small,
        # and exact before it is multiplied.
        total = splat(np.float32(reference_totals[row]))
        gap = reference_totals[row] - totals[row]
        between = splat(np.float32(gap))
        sum = 0.0
        for start in range(0, whole, _STEPS * LANES):
            lanes = splat(_ZERO)
            for i in range(start, min(start + _STEPS * LANES, whole), LANES):
                a, b = load(reference, begin + i), load(logits, begin + i)
                lanes = lanes + _exp(a - total) * (a - b - between)
            sum += _sum(lanes, scratch)
        for i in range(whole, n_vocab):
            a, b = np.float64(reference[begin + i]), np.float64(logits[begin + i])
            sum += math.exp(a - reference_totals[row]) * (a - b - gap)
        out[row] = sum
