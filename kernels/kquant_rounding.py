"""Rounding weights to codes, and the constants that the K-quant kernels share."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from llmkit.kernels.intlanes import bits_of, larger, smaller, splat_int
from llmkit.kernels.jit import helper
from llmkit.kernels.lanes import splat

SUPERBLOCK: Final = 256  # weights; QK_K in ggml

# 1.5 * 2^23: adding it leaves the rounded integer in the low mantissa bits.
ROUNDING_MAGIC: Final = np.float32(12582912.0)

# Below this magnitude ggml takes a group of weights for zeros.
GROUP_MAX_EPS: Final = np.float32(1e-15)

_MANTISSA: Final = 0x007FFFFF
_MAGIC_MANTISSA: Final = 0x00400000


@helper
def nearest_int(value: Any) -> Any:
    """Round a float32 to the nearest integer, ties to even, by the magic number as ggml's `nearest_int`.

    The result is exact for |value| <= 4194303; beyond that, and for infinities and NaN, it is whatever the low
    23 bits hold, and ggml's bytes depend on it.
    """
    bits = np.float32(value + ROUNDING_MAGIC).view(np.int32)
    return np.int32(np.int32(bits & np.int32(_MANTISSA)) - np.int32(_MAGIC_MANTISSA))


@helper
def nearest_codes(lanes: Any, lowest: Any, highest: Any) -> Any:
    """Each float32 lane rounded by `nearest_int` and held between two integers, as int32 lanes."""
    nearest = (bits_of(lanes + splat(ROUNDING_MAGIC)) & _MANTISSA) - _MAGIC_MANTISSA
    return larger(smaller(nearest, splat_int(highest)), splat_int(lowest))
