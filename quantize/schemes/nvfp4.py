"""NVFP4: 64 weights in four sub-blocks of 16, each with a scale in 8 bits, codes of 4 bits (E2M1); read only.

36 bytes: four scales, then eight bytes of codes per sub-block: byte i holds the code of weight i in its low half and
that of weight 8 + i in its high half. The top bit of a code is the sign, the others stand for 0 1 2 3 4 6 8 12, twice
what E2M1 says; so a scale counts half of what UE4M3 says: 4 bits of exponent (bias 7) and 3 of mantissa, no sign, and
127, which would be NaN, means zero. Source: ggml-common.h (block_nvfp4), ggml-impl.h (ggml_ue4m3_to_fp32) and
ggml-quants.c (dequantize_row_nvfp4) of llama.cpp.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.intlanes import float_from_bits, load_u8, lower_halves, splat_int, to_float, upper_halves
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.lanes import LANES, splat, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK_NVFP4: Final = np.dtype([("scales", "u1", 4), ("codes", "u1", (4, 8))])
_BYTES: Final = 36
_CODES: Final = 4
_WEIGHTS: Final = 64
_MAGNITUDES: Final = np.int32(0xC8643210 - (1 << 32))  # of code 0 in the lowest four bits, and so on
_SMALLEST_SCALE: Final = np.float32(2.0**-10)
_NO_SCALE: Final = 127


@helper
def _scale(byte: Any) -> Any:
    """Half of a UE4M3 number as float32; its top bit does not count."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if byte == _NO_SCALE:
        return np.float32(0)
    if exponent == 0:
        return np.float32(mantissa) * _SMALLEST_SCALE
    return float_from_bits(exponent + (127 - 7 - 1) << 23 | mantissa << 20)


@helper
def _values(codes: Any) -> Any:
    """Float32 lanes from codes of 4 bits; code 8 is zero without a sign, as integers have none."""
    magnitudes = splat_int(_MAGNITUDES) >> ((codes & 7) << 2) & 15
    sign = splat_int(0) - (codes >> 3)
    return to_float((magnitudes ^ sign) - sign)


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // _WEIGHTS):
        at, start = block * _BYTES, block * _WEIGHTS
        for i in range(2):
            codes = load_u8(packed, at + _CODES + LANES * i)
            low, high = codes & 15, codes >> 4
            first, second = splat(_scale(packed[at + 2 * i])), splat(_scale(packed[at + 2 * i + 1]))
            store(weights, start + 32 * i, _values(lower_halves(low, high)) * first)
            store(weights, start + 32 * i + LANES, _values(upper_halves(low, high)) * second)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.NVFP4, BLOCK_NVFP4, packed)
    exponents, mantissas = blocks["scales"] >> 3 & 15, (blocks["scales"] & 7).astype(np.float32)
    normal = np.ldexp(1 + mantissas / np.float32(8), exponents.astype(np.int32) - 8)
    scales = np.where(exponents == 0, mantissas * _SMALLEST_SCALE, normal)
    scales[blocks["scales"] == _NO_SCALE] = 0
    magnitudes = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
    values = np.concatenate([magnitudes, np.float32(0) - magnitudes])
    codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=-1)
    weights: Rows = (values[codes] * scales[..., None]).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.NVFP4, BLOCK_NVFP4, _decode, decode_oracle)
