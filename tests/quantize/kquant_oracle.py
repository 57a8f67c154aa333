"""The K-quant encoders as scalar NumPy float32 arithmetic, one operation after the other: slow and obvious.

Written from the definition of the formats and of the search (ggml-quants.c: make_qkx2_quants, make_qx_quants,
quantize_row_q4_K_ref, quantize_row_q5_K_ref, quantize_row_q6_K_ref), without lanes, Numba or vector operations.
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


def search_affine(x: Floats, highest: int, first: float, last_step: int) -> Affine:
    energy = f32(0)
    for v in x:
        energy = energy + v * v
    typical = np.sqrt(energy / f32(32))
    weight = [typical + abs(v) for v in x]

    sum_w, sum_x = weight[0], weight[0] * x[0]
    for w, v in zip(weight[1:], x[1:], strict=True):
        sum_w = sum_w + w
        sum_x = sum_x + w * v
    minimum, maximum = min(x.min(), f32(0)), x.max()
    if minimum == maximum:
        return Affine(f32(0), -minimum, [0] * 32)

    def error_of(scale: np.float32, minimum: np.float32, codes: list[int]) -> np.float32:
        error = f32(0)
        for w, v, code in zip(weight, x, codes, strict=True):
            difference = scale * f32(code) + minimum - v
            error = error + w * (difference * difference)
        return error

    inverse = f32(highest) / (maximum - minimum)
    codes = [code_of(inverse * (v - minimum), 0, highest) for v in x]
    best = Affine(f32(1) / inverse, -minimum, codes)
    best_error = error_of(best.scale, minimum, codes)
    for step in range(last_step + 1):
        inverse = (f32(first) + f32(0.1) * f32(step) + f32(highest)) / (maximum - minimum)
        codes = [code_of(inverse * (v - minimum), 0, highest) for v in x]
        sum_l = sum_l2 = sum_xl = f32(0)
        for w, v, code in zip(weight, x, codes, strict=True):
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


def encode_affine(x: Floats, highest: int, first: float, last_step: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The first 16 bytes of a superblock of Q4_K or Q5_K, and its 256 codes."""
    found = [search_affine(x[i : i + 32], highest, first, last_step) for i in range(0, 256, 32)]
    stored = []
    for values in ([f.scale for f in found], [f.minus_minimum for f in found]):
        largest = max([f32(0), *[v for v in values if v > 0]])
        inverse = f32(63) / largest if largest > 0 else f32(0)
        numbers = [min(63, nearest(inverse * v) & 255) for v in values]
        stored.append((np.float16(largest / f32(63)), numbers))
    (d, scales), (dmin, minimums) = stored
    packed = bytearray(12)
    for j in range(4):
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6
        packed[j + 4] = minimums[j] | (minimums[j + 4] >> 4) << 6
        packed[j + 8] = (scales[j + 4] & 15) | (minimums[j + 4] & 15) << 4
    codes = []
    for j in range(8):
        scale, minimum = f32(d) * f32(scales[j]), f32(dmin) * f32(minimums[j])
        if scale == 0:
            codes += found[j].codes
        else:
            codes += [code_of((v + minimum) / scale, 0, highest) for v in x[32 * j : 32 * j + 32]]
    return d.tobytes() + dmin.tobytes() + bytes(packed), np.array(codes, np.uint8)


def encode_q4_k(x: Floats) -> bytes:
    head, codes = encode_affine(x, 15, -1.0, 20)
    pairs = codes.reshape(4, 2, 32)
    return head + (pairs[:, 0] | pairs[:, 1] << 4).tobytes()


def encode_q5_k(x: Floats) -> bytes:
    head, codes = encode_affine(x, 31, -0.5, 15)
    fifth_bits = np.packbits(codes.reshape(8, 32) >> 4, axis=0, bitorder="little")
    pairs = (codes & 15).reshape(4, 2, 32)
    return head + fifth_bits.tobytes() + (pairs[:, 0] | pairs[:, 1] << 4).tobytes()


def search_signed(x: Floats) -> tuple[np.float32, list[int]]:
    """Scale and codes 0..63 of sixteen weights, weight = scale * (code - 32)."""
    extreme = f32(0)
    for v in x:
        if abs(v) > abs(extreme):
            extreme = v
    if abs(extreme) < f32(1e-15):
        return f32(0), [0] * 16

    def fit(inverse: np.float32) -> tuple[np.float32, np.float32, list[int]]:
        codes = [code_of(inverse * v, -32, 31) for v in x]
        sum_lx = sum_l2 = f32(0)
        for v, code in zip(x, codes, strict=True):
            sum_lx = sum_lx + v * v * v * f32(code)
            sum_l2 = sum_l2 + v * v * f32(code) * f32(code)
        return sum_lx, sum_l2, codes

    sum_lx, sum_l2, best_codes = fit(f32(-32) / extreme)
    scale = sum_lx / sum_l2 if sum_l2 != 0 else f32(0)
    best = scale * sum_lx
    for step in [*range(-9, 0), *range(1, 10)]:
        sum_lx, sum_l2, codes = fit(-(f32(32) + f32(0.1) * f32(step)) / extreme)
        if sum_l2 > 0 and sum_lx * sum_lx > best * sum_l2:
            scale, best_codes = sum_lx / sum_l2, codes
            best = scale * sum_lx
    return scale, [code + 32 for code in best_codes]


def encode_q6_k(x: Floats) -> bytes:
    found = [search_signed(x[i : i + 16]) for i in range(0, 256, 16)]
    largest = f32(0)
    for scale, _ in found:
        if abs(scale) > abs(largest):
            largest = scale
    if abs(largest) < f32(1e-15):
        return bytes(210)
    inverse = f32(-128) / largest
    d = np.float16(f32(1) / inverse)
    scales = np.array([min(127, nearest(inverse * scale)) for scale, _ in found], np.int8)
    codes = []
    for j, (_, searched) in enumerate(found):
        step = f32(d) * f32(scales[j])
        if step == 0:
            codes += searched
        else:
            codes += [code_of(v / step, -32, 31) + 32 for v in x[16 * j : 16 * j + 16]]
    halves = np.array(codes, np.uint8).reshape(2, 4, 32)
    low = halves & 15
    low_bytes = np.stack([low[:, 0] | low[:, 2] << 4, low[:, 1] | low[:, 3] << 4], axis=1)
    high = halves >> 4
    high_bytes = high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6
    return low_bytes.tobytes() + high_bytes.tobytes() + scales.tobytes() + d.tobytes()
