"""The encoders with scales and no minimums as scalar NumPy float32 arithmetic: slow and obvious.

Written from the definition of the formats and of the searches (ggml-quants.c: make_qx_quants, make_q3_quants and their
callers), without lanes, Numba or vector operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.quantize.kquant_oracle import Floats, code_of, f32, importance_counts, nearest

Codes = NDArray[np.uint8]


def extreme_of(values: Sequence[np.float32] | Floats) -> np.float32:
    """The first value of largest magnitude."""
    extreme = f32(0)
    for v in values:
        if abs(v) > abs(extreme):
            extreme = v
    return extreme


def search(
    x: Sequence[np.float32] | Floats, counts: Sequence[np.float32] | Floats, reach: int
) -> tuple[np.float32, list[int]]:
    """Scale and codes 0 .. 2 * reach - 1 of a group, w = scale * (code - reach)."""
    extreme = extreme_of(x)
    if abs(extreme) < f32(1e-15):
        return f32(0), [0] * len(x)

    def fit(inverse: np.float32) -> tuple[np.float32, np.float32, list[int]]:
        codes = [code_of(inverse * v, -reach, reach - 1) for v in x]
        sum_lx = sum_l2 = f32(0)
        for v, count, code in zip(x, counts, codes, strict=True):
            sum_lx = sum_lx + count * v * f32(code)
            sum_l2 = sum_l2 + count * f32(code) * f32(code)
        return sum_lx, sum_l2, codes

    sum_lx, sum_l2, best_codes = fit(f32(-reach) / extreme)
    scale = sum_lx / sum_l2 if sum_l2 != 0 else f32(0)
    best = scale * sum_lx
    for step in [*range(-9, 0), *range(1, 10)]:
        sum_lx, sum_l2, codes = fit(-(f32(reach) + f32(0.1) * f32(step)) / extreme)
        if sum_l2 > 0 and sum_lx * sum_lx > best * sum_l2:
            scale, best_codes = sum_lx / sum_l2, codes
            best = scale * sum_lx
    return scale, [code + reach for code in best_codes]


class Descent(NamedTuple):
    """w = scale * (code - 4). passes: how many it took; the last one changed nothing unless it had to be the last."""

    scale: np.float32
    codes: list[int]
    passes: int


def descend(x: Floats, most: int = 5) -> Descent:
    """What Q3_K makes of a sub-block without an importance matrix, after `most` passes at most."""
    extreme = extreme_of(x)
    if abs(extreme) < f32(1e-15):
        return Descent(f32(0), [0] * len(x), 0)
    inverse = f32(-4) / extreme
    codes = [code_of(inverse * v, -4, 3) for v in x]
    sum_lx = sum_l2 = f32(0)
    for v, code in zip(x, codes, strict=True):
        sum_lx = sum_lx + v * v * v * f32(code)
        sum_l2 = sum_l2 + v * v * f32(code) * f32(code)
    passes = 0
    changed = True
    while changed and passes < most:
        changed = False
        passes += 1
        for i, v in enumerate(x):
            others_lx = sum_lx - v * v * v * f32(codes[i])
            others_l2 = sum_l2 - v * v * f32(codes[i]) * f32(codes[i])
            if not others_lx > 0:
                continue
            code = code_of(v * others_l2 / others_lx, -4, 3)
            if code == codes[i]:
                continue
            new_lx = others_lx + v * v * v * f32(code)
            new_l2 = others_l2 + v * v * f32(code) * f32(code)
            if new_l2 > 0 and new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2:
                codes[i], sum_lx, sum_l2 = code, new_lx, new_l2
                changed = True
    return Descent(sum_lx / sum_l2 if sum_l2 > 0 else f32(0), [code + 4 for code in codes], passes)


def round_to_stored(
    x: Floats, d: np.float16, scales: Sequence[int] | NDArray[np.int8], searched: list[list[int]], reach: int
) -> Codes:
    """The 256 codes of a superblock, given its scales as they are stored."""
    codes = []
    for j, codes_of_search in enumerate(searched):
        step = f32(d) * f32(scales[j])
        if step == 0:
            codes += codes_of_search
        else:
            codes += [code_of(v / step, -reach, reach - 1) + reach for v in x[16 * j : 16 * j + 16]]
    return np.array(codes, np.uint8)


def encode_q6_k(x: Floats, importance: Floats | None = None) -> bytes:
    """A superblock; its weights count their importance, or without one their squares."""
    counts = x * x if importance is None else importance
    found = [search(x[i : i + 16], counts[i : i + 16], 32) for i in range(0, 256, 16)]
    largest = extreme_of([scale for scale, _ in found])
    if abs(largest) < f32(1e-15):
        return bytes(210)
    inverse = f32(-128) / largest
    d = np.float16(f32(1) / inverse)
    scales = np.array([min(127, nearest(inverse * scale)) & 255 for scale, _ in found], np.uint8).view(np.int8)
    codes = round_to_stored(x, d, scales, [codes for _, codes in found], 32)
    halves = codes.reshape(2, 4, 32)
    low = halves & 15
    low_bytes = np.stack([low[:, 0] | low[:, 2] << 4, low[:, 1] | low[:, 3] << 4], axis=1)
    high = halves >> 4
    high_bytes = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    return low_bytes.tobytes() + high_bytes.tobytes() + scales.tobytes() + d.tobytes()


def encode_q3_k(x: Floats, importance: Floats | None = None) -> bytes:
    """A superblock."""
    if importance is None:
        descents = [descend(x[i : i + 16]) for i in range(0, 256, 16)]
        searched = [descent.codes for descent in descents]
        largest = extreme_of([descent.scale for descent in descents])
        if largest == 0:
            d, numbers = np.float16(0), [0] * 16
        else:
            inverse = f32(-32) / largest
            d = np.float16(f32(1) / inverse)
            numbers = [code_of(inverse * descent.scale, -32, 31) + 32 for descent in descents]
    else:
        counts = importance_counts(x, importance, 2)
        found = [search(x[i : i + 16], counts[i : i + 16], 4) for i in range(0, 256, 16)]
        searched = [codes for _, codes in found]
        masses = []
        for i in range(0, 256, 16):
            mass = f32(0)
            for count in counts[i : i + 16]:
                mass = mass + count
            masses.append(mass)
        scale, numbers = search([scale for scale, _ in found], masses, 32)
        d = np.float16(scale)
    codes = round_to_stored(x, d, [number - 32 for number in numbers], searched, 4)
    high = np.packbits(codes.reshape(8, 32) >> 2, axis=0, bitorder="little")
    halves = codes.reshape(2, 4, 32) & 3
    pairs = halves[:, 0] | halves[:, 1] << 2 | halves[:, 2] << 4 | halves[:, 3] << 6
    quarters = np.array(numbers, np.uint8).reshape(4, 4)
    low = (quarters & 15).reshape(2, 8)
    top = quarters[0] >> 4 | quarters[1] >> 4 << 2 | quarters[2] >> 4 << 4 | quarters[3] >> 4 << 6
    parts: list[NDArray[Any]] = [high, pairs, low[0] | low[1] << 4, top]
    return b"".join(part.tobytes() for part in parts) + d.tobytes()


def encode_q4_0(x: Floats, importance: Floats) -> bytes:
    """A row, with an importance matrix."""
    packed = b""
    for scale, codes in search_blocks(x, importance, 8):
        packed += np.float16(scale).tobytes() + (codes[:16] | codes[16:] << 4).tobytes()
    return packed


def encode_q5_0(x: Floats, importance: Floats) -> bytes:
    """A row, with an importance matrix."""
    packed = b""
    for scale, codes in search_blocks(x, importance, 16):
        fifth_bits = np.packbits(codes >> 4, bitorder="little").tobytes()
        low = codes & 15
        packed += np.float16(scale).tobytes() + fifth_bits + (low[:16] | low[16:] << 4).tobytes()
    return packed


def search_blocks(x: Floats, importance: Floats, reach: int) -> list[tuple[np.float32, Codes]]:
    """Scale and codes of each block of 32 of a row."""
    counts = importance_counts(x, importance, 1)
    found = [search(x[i : i + 32], counts[i : i + 32], reach) for i in range(0, len(x), 32)]
    return [(scale, np.array(codes, np.uint8)) for scale, codes in found]
