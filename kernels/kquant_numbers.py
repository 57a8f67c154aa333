"""Scalar arithmetic shared by the K-quant kernels."""

from __future__ import annotations

from typing import Final

import numpy as np

from llmkit.kernels.jit import helper

SUPERBLOCK: Final = 256  # weights; QK_K in ggml

# 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits.
ROUNDING_MAGIC: Final = np.float32(12582912.0)

# Below this magnitude ggml takes a group of weights for zeros.
GROUP_MAX_EPS: Final = np.float32(1e-15)


@helper
def nearest_int(value):
    """Round a float32 to the nearest integer, ties to even, by the magic number as ggml's `nearest_int`.

    The result is exact for |value| <= 4194303; beyond that, and for infinities and NaN, it is whatever the low
    23 bits hold, and ggml's bytes depend on it.
    """
    bits = np.float32(value + ROUNDING_MAGIC).view(np.int32)
    return np.int32(np.int32(bits & np.int32(0x007FFFFF)) - np.int32(0x00400000))


@helper
def clamp(value, low, high):
    """`value` held between `low` and `high`, all int32."""
    return np.int32(max(low, min(high, value)))


@helper
def f16_bits(value):
    """The float16 nearest to a float32, ties to even, as its 16 bits (uint16)."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if magnitude > np.uint32(0x7F800000):
        return np.uint16(sign | np.uint32(0x7E00))
    if magnitude >= np.uint32(0x477FF000):  # 65520 and above round to infinity
        return np.uint16(sign | np.uint32(0x7C00))
    if magnitude < np.uint32(0x38800000):  # below 2^-14: counted in units of 2^-24
        units = np.uint32(magnitude).view(np.float32) + np.float32(0.5)  # the ulp of 0.5 is 2^-24
        return np.uint16(sign | np.uint32(np.float32(units).view(np.uint32) - np.uint32(0x3F000000)))
    odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
    rounded = np.uint32(magnitude + np.uint32(0xFFF) + odd - np.uint32(0x38000000))
    return np.uint16(sign | np.uint32(rounded >> np.uint32(13)))


@helper
def f16_value(bits):
    """The float32 equal to a float16 given as its 16 bits."""
    sign = np.uint32((np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16))
    exponent = np.uint32((np.uint32(bits) >> np.uint32(10)) & np.uint32(31))
    fraction = np.uint32(np.uint32(bits) & np.uint32(0x3FF))
    if exponent == np.uint32(0):
        magnitude = np.float32(np.float32(fraction) * np.float32(2.0**-24)).view(np.uint32)
    elif exponent == np.uint32(31):
        magnitude = np.uint32(np.uint32(0x7F800000) | np.uint32(fraction << np.uint32(13)))
    else:
        magnitude = np.uint32(
            np.uint32((exponent + np.uint32(112)) << np.uint32(23)) | np.uint32(fraction << np.uint32(13))
        )
    return np.uint32(sign | magnitude).view(np.float32)
