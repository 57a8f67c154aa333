"""Conversions between float32 and the 16-bit floats, rounding as ggml does.

float16 is IEEE binary16 and bfloat16 the upper half of a float32. Both are rounded to nearest, ties to even;
denormals are kept; a value beyond the largest finite one becomes infinity. NaN stays NaN: to bfloat16 it keeps its
upper payload bits and is made quiet, to float16 it becomes the default NaN with its sign (ggml-impl.h,
`ggml_compute_fp32_to_bf16` and `ggml_compute_fp32_to_fp16`). Integer and float32 arithmetic only, so processors
without half-float instructions give the same bits.

All functions take flat contiguous arrays of one length, run serially and without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.intlanes import bits_of, from_bits, load_u16, select_int, splat_int, store_u16, to_float
from llmkit.kernels.jit import helper, kernel, source, target
from llmkit.kernels.lanes import LANES, load, splat, store

_INFINITY = 0x7F800000  # bits of float32 infinity; anything above is NaN
_F16_SMALLEST_NORMAL = 0x38800000  # bits of 2**-14 as float32
_F16_UNIT = np.float32(2.0**-24)  # the smallest float16 denormal


@helper
def f16_bits(lanes: Any) -> Any:
    """Float16 bits of float32 lanes, in the low half of int32 lanes."""
    word = bits_of(lanes)
    magnitude = word & 0x7FFFFFFF
    # A float16 denormal counts units of 2**-24, the last bit of 0.5 in float32: adding 0.5 rounds to that unit.
    denormal = bits_of(from_bits(magnitude) + splat(np.float32(0.5))) - 0x3F000000
    # Rebias the exponent by 127 - 15 and round the 13 bits that go; a carry into the exponent is right.
    normal = (magnitude - (0x38000000 - 0xFFF) + ((magnitude >> 13) & 1)) >> 13
    half = select_int(magnitude < _F16_SMALLEST_NORMAL, denormal, normal)
    half = select_int(half < 0x7C00, half, splat_int(0x7C00))
    half = select_int(magnitude > _INFINITY, splat_int(0x7E00), half)
    return half | ((word >> 16) & 0x8000)


@helper
def f16_values(half: Any) -> Any:
    """Float32 lanes from float16 bits in int32 lanes; a signalling NaN becomes quiet."""
    magnitude = half & 0x7FFF
    denormal = bits_of(to_float(magnitude) * splat(_F16_UNIT))
    normal = (magnitude << 13) + 0x38000000
    special = (magnitude << 13) + 0x70000000
    special = select_int(magnitude > 0x7C00, special | 0x400000, special)
    word = select_int(magnitude < 0x400, denormal, normal)
    word = select_int(magnitude < 0x7C00, word, special)
    return from_bits(word | ((half & 0x8000) << 16))


@helper
def bf16_bits(lanes: Any) -> Any:
    """Bfloat16 bits of float32 lanes, in the low half of int32 lanes."""
    word = bits_of(lanes)
    rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
    quiet = (word >> 16) | 0x40
    return select_int((word & 0x7FFFFFFF) > _INFINITY, quiet, rounded)


@kernel(source(types.uint16), target(types.float32))
def _bf16_to_f32(src: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(0, src.size, LANES):
        store(out, i, from_bits(load_u16(src, i) << 16))


@kernel(source(types.uint16), target(types.float32))
def _f16_to_f32(src: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(0, src.size, LANES):
        store(out, i, f16_values(load_u16(src, i)))


@kernel(source(types.float32), target(types.uint16))
def _f32_to_bf16(src: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    for i in range(0, src.size, LANES):
        store_u16(out, i, bf16_bits(load(src, i)))


@kernel(source(types.float32), target(types.uint16))
def _f32_to_f16(src: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    for i in range(0, src.size, LANES):
        store_u16(out, i, f16_bits(load(src, i)))


@kernel(source(types.float64), target(types.float32))
def _f64_to_f32(src: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    for i in range(src.size):
        out[i] = np.float32(src[i])


def _convert(run: Callable[[Any, Any], None], src: NDArray[Any], out: NDArray[Any]) -> None:
    """Run a kernel that works on whole groups of lanes on arrays of any length."""
    if src.ndim != 1 or src.shape != out.shape:
        raise ValueError(f"expected two flat arrays of one length, got {src.shape} and {out.shape}")
    whole = src.size - src.size % LANES
    if whole:
        run(src[:whole], out[:whole])
    if whole < src.size:
        padded, converted = np.zeros(LANES, src.dtype), np.empty(LANES, out.dtype)
        padded[: src.size - whole] = src[whole:]
        run(padded, converted)
        out[whole:] = converted[: src.size - whole]


def bf16_to_f32(src: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """Widen bfloat16 bits to float32: exact, NaN payloads included."""
    _convert(_bf16_to_f32, src, out)


def f16_to_f32(src: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """Widen float16 bits to float32: exact; a signalling NaN becomes quiet."""
    _convert(_f16_to_f32, src, out)


def f32_to_bf16(src: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Round float32 to bfloat16 bits."""
    _convert(_f32_to_bf16, src, out)


def f32_to_f16(src: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Round float32 to float16 bits."""
    _convert(_f32_to_f16, src, out)


def f64_to_f32(src: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    """Round float64 to float32, to nearest even; beyond the largest float32 lies infinity."""
    _convert(_f64_to_f32, src, out)
