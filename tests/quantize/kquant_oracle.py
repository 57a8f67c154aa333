"""The K-quant encoders with minimums as scalar NumPy float32 arithmetic, step by step: slow and obvious.

Written from the definition of the formats and of the search (ggml-quants.c: make_qkx2_quants, make_qkx3_quants,
make_qp_quants and their callers), without lanes, Numba or vector operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
f32 = np.float32


def nearest(value: np.float32) -> int:
    """The low mantissa bits after adding 1.5 * 2^23."""
    return int((value + f32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000


def code_of(value: np.float32, lowest: int, highest: int) -> int:
    return max(lowest, min(highest, nearest(value)))


@dataclass
class Affine:
    """weight = scale * code - minus_minimum."""

    scale: np.float32
    minus_minimum: np.float32
    codes: list[int]


def spread_counts(x: Floats) -> list[np.float32]:
    """What weights count without an importance matrix, but in Q2_K."""
    energy = f32(0)
    for v in x:
        energy = energy + v * v
    typical = np.sqrt(energy / f32(len(x)))
    return [typical + abs(v) for v in x]


def importance_counts(x: Floats, importance: Floats, factor: float) -> list[np.float32]:
    """What the weights of a superblock, or of a row, count with an importance matrix."""
    energy = f32(0)
    for v in x:
        energy = energy + v * v
    variance = f32(factor) * energy / f32(len(x))
    return [q * np.sqrt(variance + v * v) for q, v in zip(importance, x, strict=True)]


@dataclass(frozen=True)
class Steps:
    """The inverse scales to try, and whether errors are absolute differences instead of squares."""

    first: float
    step: float
    last: int
    absolute: bool = False


WEIGHTED = Steps(-0.9, 0.05, 36)


def search_affine(x: Floats, counts: list[np.float32], highest: int, steps: Steps) -> Affine:
    sum_w, sum_x = counts[0], counts[0] * x[0]
    for w, v in zip(counts[1:], x[1:], strict=True):
        sum_w = sum_w + w
        sum_x = sum_x + w * v
    minimum, maximum = min(x.min(), f32(0)), x.max()
    if minimum == maximum:
        return Affine(f32(0), -minimum, [0] * len(x))

    def error_of(scale: np.float32, minimum: np.float32, codes: list[int]) -> np.float32:
        error = f32(0)
        for w, v, code in zip(counts, x, codes, strict=True):
            difference = scale * f32(code) + minimum - v
            error = error + w * (abs(difference) if steps.absolute else difference * difference)
        return error

    inverse = f32(highest) / (maximum - minimum)
    codes = [code_of(inverse * (v - minimum), 0, highest) for v in x]
    best = Affine(f32(1) / inverse, -minimum, codes)
    best_error = error_of(best.scale, minimum, codes)
    for step in range(steps.last + 1):
        inverse = (f32(steps.first) + f32(steps.step) * f32(step) + f32(highest)) / (maximum - minimum)
        codes = [code_of(inverse * (v - minimum), 0, highest) for v in x]
        sum_l = sum_l2 = sum_xl = f32(0)
        for w, v, code in zip(counts, x, codes, strict=True):
            sum_l = sum_l + w * f32(code)
            sum_l2 = sum_l2 + w * f32(code) * f32(code)
            sum_xl = sum_xl + w * f32(code) * v
        determinant = sum_w * sum_l2 - sum_l * sum_l
        if not determinant > 0:
            continue
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        fitted_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        if fitted_minimum > 0:
            fitted_minimum, scale = f32(0), sum_xl / sum_l2
        error = error_of(scale, fitted_minimum, codes)
        if error < best_error:
            best_error, best = error, Affine(scale, -fitted_minimum, codes)
            minimum = fitted_minimum  # later candidates are measured from here
    return best


def numbers_by_largest(values: list[np.float32], highest: int) -> tuple[np.float32, list[int]]:
    """A factor and a byte for each value, so that the largest value becomes `highest`."""
    largest = max([f32(0), *[v for v in values if v > 0]])
    inverse = f32(highest) / largest if largest > 0 else f32(0)
    return largest / f32(highest), [nearest(inverse * v) & 255 for v in values]


def numbers_by_fit(values: list[np.float32], masses: list[np.float32], highest: int) -> tuple[np.float32, list[int]]:
    """A factor and a byte for each value, chosen for a small weighted squared error."""
    largest = max([f32(0), *values])
    if largest < f32(1e-15):
        return f32(0), [0] * len(values)
    pairs = list(zip(values, masses, strict=True))
    best_error, best_inverse = f32(np.inf), f32(0)
    for step in [0, -4, -3, -2, -1, 1, 2, 3, 4]:
        inverse = (f32(0.1) * f32(step) + f32(highest)) / largest
        error = f32(0)
        for v, mass in pairs:
            number = nearest(inverse * v)
            number = number & 255 if step == 0 else min(highest, number)
            difference = v - f32(1) / inverse * f32(number)
            error = error + mass * difference * difference
        if step == 0 or error < best_error:
            best_error, best_inverse = error, inverse
    numbers = []
    sum_lx = sum_l2 = f32(0)
    for v, mass in pairs:
        number = min(highest, nearest(best_inverse * v))
        numbers.append(number & 255)
        sum_lx = sum_lx + mass * v * f32(number)
        sum_l2 = sum_l2 + mass * f32(number) * f32(number)
    for _ in range(5):
        changed = False
        for i, (v, mass) in enumerate(pairs):
            lx = sum_lx - mass * v * f32(numbers[i])
            l2 = sum_l2 - mass * f32(numbers[i]) * f32(numbers[i])
            if lx > 0 and l2 > 0:
                number = min(highest, nearest(v * l2 / lx))
                if number != numbers[i]:
                    lx = lx + mass * v * f32(number)
                    l2 = l2 + mass * f32(number) * f32(number)
                    if lx * lx * sum_l2 > sum_lx * sum_lx * l2:
                        numbers[i], sum_lx, sum_l2, changed = number & 255, lx, l2, True
        if not changed:
            break
    return (sum_lx / sum_l2 if sum_l2 > 0 else f32(0)), numbers


@dataclass
class AffineSuperblock:
    """d, dmin, their numbers for each sub-block (bytes), and what the searches found."""

    d: np.float16
    dmin: np.float16
    scales: list[int]
    minimums: list[int]
    found: list[Affine]

    def codes(self, x: Floats, highest: int, stored: list[tuple[int, int]]) -> NDArray[np.uint8]:
        """The 256 codes by the numbers (scale, minimum) as they are read back from what is stored."""
        codes: list[int] = []
        size = len(x) // len(stored)
        for j, (scale_number, minimum_number) in enumerate(stored):
            scale, minimum = f32(self.d) * f32(scale_number), f32(self.dmin) * f32(minimum_number)
            if scale == 0:
                codes += self.found[j].codes
            else:
                codes += [code_of((v + minimum) / scale, 0, highest) for v in x[size * j : size * (j + 1)]]
        return np.array(codes, np.uint8)


def fit_superblock(
    x: Floats, importance: Floats | None, factor: float, size: int, highest: int, steps: Steps, top: int
) -> AffineSuperblock:
    """Search the sub-blocks of `size` weights and turn their scales and minimums into numbers 0..top."""
    parts = [x[i : i + size] for i in range(0, 256, size)]
    if importance is not None:
        all_counts = importance_counts(x, importance, factor)
        counts = [all_counts[i : i + size] for i in range(0, 256, size)]
        steps = WEIGHTED
    elif steps.absolute:
        counts = [[abs(v) for v in part] for part in parts]
    else:
        counts = [spread_counts(part) for part in parts]
    found = [search_affine(part, w, highest, steps) for part, w in zip(parts, counts, strict=True)]
    stored = []
    for values in ([f.scale for f in found], [f.minus_minimum for f in found]):
        if importance is None:
            stored.append(numbers_by_largest(values, top))
        else:
            masses = []
            for part in counts:
                mass = f32(0)
                for w in part:
                    mass = mass + w
                masses.append(mass)
            stored.append(numbers_by_fit(values, masses, top))
    (d, scales), (dmin, minimums) = stored
    return AffineSuperblock(np.float16(d), np.float16(dmin), scales, minimums, found)


def pack_six_bits(fit: AffineSuperblock, largest_byte: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The first 16 bytes of a superblock of Q4_K or Q5_K, and the numbers as they are read from them."""
    scales, minimums = ([min(largest_byte, n) for n in numbers] for numbers in (fit.scales, fit.minimums))
    packed = np.zeros(12, np.uint8)
    for j in range(4):
        packed[j] = scales[j] | (scales[j + 4] >> 4 << 6) & 255
        packed[j + 4] = minimums[j] | (minimums[j + 4] >> 4 << 6) & 255
        packed[j + 8] = (scales[j + 4] & 15) | (minimums[j + 4] & 15) << 4
    low, middle, high = packed[:4].astype(int), packed[4:8].astype(int), packed[8:].astype(int)
    read_scales = [*(low & 63), *(high & 15 | low >> 6 << 4)]
    read_minimums = [*(middle & 63), *(high >> 4 | middle >> 6 << 4)]
    head = fit.d.tobytes() + fit.dmin.tobytes() + packed.tobytes()
    return head, list(zip(read_scales, read_minimums, strict=True))


def encode_q4_k(x: Floats, importance: Floats | None = None) -> bytes:
    fit = fit_superblock(x, importance, 2, 32, 15, Steps(-1, 0.1, 20), 63)
    head, stored = pack_six_bits(fit, 63 if importance is None else 255)
    pairs = fit.codes(x, 15, stored).reshape(4, 2, 32)
    return head + (pairs[:, 0] | pairs[:, 1] << 4).tobytes()


def encode_q5_k(x: Floats, importance: Floats | None = None) -> bytes:
    fit = fit_superblock(x, importance, 2, 32, 31, Steps(-0.5, 0.1, 15), 63)
    head, stored = pack_six_bits(fit, 63)
    codes = fit.codes(x, 31, stored)
    fifth_bits = np.packbits(codes.reshape(8, 32) >> 4, axis=0, bitorder="little")
    pairs = (codes & 15).reshape(4, 2, 32)
    return head + fifth_bits.tobytes() + (pairs[:, 0] | pairs[:, 1] << 4).tobytes()


def encode_q2_k(x: Floats, importance: Floats | None = None) -> bytes:
    fit = fit_superblock(x, importance, 1, 16, 3, Steps(-0.5, 0.1, 15, absolute=True), 15)
    numbers = np.array(fit.scales, np.uint8) | np.array(fit.minimums, np.uint8) << 4
    quarters = fit.codes(x, 3, [(n & 15, n >> 4) for n in numbers]).reshape(2, 4, 32)
    codes = quarters[:, 0] | quarters[:, 1] << 2 | quarters[:, 2] << 4 | quarters[:, 3] << 6
    return numbers.tobytes() + codes.tobytes() + fit.d.tobytes() + fit.dmin.tobytes()


def encode_blocks(x: Floats, importance: Floats, highest: int) -> list[tuple[np.float16, np.float16, list[int]]]:
    """Scale, minimum and codes of each block of 32 of a row of Q4_1 or Q5_1."""
    counts = importance_counts(x, importance, 1)
    found = [search_affine(x[i : i + 32], counts[i : i + 32], highest, WEIGHTED) for i in range(0, len(x), 32)]
    return [(np.float16(f.scale), np.float16(-f.minus_minimum), f.codes) for f in found]
