"""MXFP4: 32 weights as a power of two and 32 four-bit floats (E2M1); weight = 2**(exponent - 128) * level of the code.

Levels are twice the values of E2M1, so that they are whole: 0 1 2 3 4 6 8 12, with code + 8 for the negative ones. Byte
0 is the exponent (E8M0); byte 1 + i holds the code of weight i in its low half and that of weight i + 16 in its high.
Layout: ggml-common.h, `block_mxfp4`; encoding: ggml-quants.c, `quantize_row_mxfp4_ref`. Importance is not used.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import BLOCK
from llmkit.kernels.intlanes import (
    bits_of,
    float_from_bits,
    larger,
    largest,
    load_u8,
    select_int,
    splat_int,
    store_u8,
)
from llmkit.kernels.jit import BYTES_IN, BYTES_OUT, FLOATS_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.lanes import LANES, absolute, load, splat, store
from llmkit.kernels.lookup import lookup
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme, nibbles
from llmkit.types import TensorType

BLOCK_MXFP4: Final = np.dtype([("exponent", "u1"), ("codes", "u1", 16)])

_BYTES: Final = 17
_CODES: Final = 1
_LEVELS: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
_MIDPOINTS: Final = (_LEVELS[1:8] + _LEVELS[:7]) / np.float32(2)
_INFINITY: Final = 0x7F800000  # bits of float32 infinity; the magnitudes above are NaN

# ggml takes the exponent as floor(log2f(x)), and log2f rounds: the floats next below 2 ** k have the logarithm k. How
# many they are, for k from _FIRST_POWER to 128.
_FIRST_POWER: Final = -148
_powers = np.arange(_FIRST_POWER, 129, dtype=np.float64)[:, None]
_ROUNDED_UP: Final = np.count_nonzero(
    (_powers + np.log2(1 - np.arange(1, 128) * 2.0**-24)).astype(np.float32) == _powers, axis=1
).astype(np.uint8)


@helper
def _floor_log2(magnitude: Any) -> Any:
    """floor(log2f(x)) of the float32 x > 0 with these bits, an integer; 128 for infinity."""
    bias = 127
    if magnitude < 0x00800000:
        # A denormal counts units of 2**-149.
        magnitude = np.float32(magnitude).view(np.int32)
        bias += 149
    power = np.int64(magnitude >> 23) - bias + 1
    if power > 128:
        return np.int64(128)
    below = 0x00800000 - (magnitude & 0x007FFFFF)
    return power if below <= _ROUNDED_UP[power - _FIRST_POWER] else power - 1


@helper
def _scale(exponent: Any) -> Any:
    """2 ** (exponent - 128) as float32, which is denormal for exponents 0 and 1."""
    return float_from_bits(np.int32(0x00200000 << exponent if exponent < 2 else (exponent - 1) << 23))


@helper
def _nearest_codes(lanes: Any, scale: Any) -> Any:
    """The code of the level nearest to each lane / scale; of two as near the one of smaller magnitude."""
    magnitude = absolute(lanes)
    codes = splat_int(0)
    for i in range(7):
        codes = select_int(magnitude > splat(_MIDPOINTS[i] * scale), splat_int(i + 1), codes)
    return select_int((bits_of(lanes) < 0) & (codes > 0), codes | 8, codes)


@helper
def _nearest_code(x: Any, scale: Any) -> Any:
    """The code of a weight as C finds it, where float32 does not give the distances to all levels."""
    code, least = 0, abs(_LEVELS[0] * scale - x)
    for i in range(1, 16):
        distance = abs(_LEVELS[i] * scale - x)
        if distance < least:
            code, least = i, distance
    return code


@kernel(FLOATS_IN, BYTES_OUT)
def _encode(weights: NDArray[np.float32], packed: NDArray[np.uint8]) -> None:
    for block in range(weights.size // BLOCK):
        start, at = block * BLOCK, block * _BYTES
        low, high = load(weights, start), load(weights, start + LANES)
        low_magnitude, high_magnitude = bits_of(low) & 0x7FFFFFFF, bits_of(high) & 0x7FFFFFFF
        magnitude = largest(larger(low_magnitude, high_magnitude))
        if magnitude > _INFINITY:
            low_magnitude = select_int(low_magnitude > _INFINITY, splat_int(0), low_magnitude)
            high_magnitude = select_int(high_magnitude > _INFINITY, splat_int(0), high_magnitude)
            magnitude = largest(larger(low_magnitude, high_magnitude))
        power = _floor_log2(magnitude) if magnitude else np.int64(-125)
        # Exponents below 0 wrap to large ones, beside which the weights are zeros. C leaves the conversion of those and
        # of infinity undefined; this is what ggml's x86 builds give.
        exponent = (power + 125) & 255 if magnitude != _INFINITY else 0
        scale = _scale(exponent)
        packed[at] = exponent
        if power < 128:
            store_u8(packed, at + _CODES, _nearest_codes(low, scale) | _nearest_codes(high, scale) << 4)
        else:
            for i in range(LANES):
                high_code = _nearest_code(weights[start + LANES + i], scale)
                packed[at + _CODES + i] = _nearest_code(weights[start + i], scale) | high_code << 4


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // BLOCK):
        at, to = block * _BYTES, block * BLOCK
        scale, codes = splat(_scale(np.int64(packed[at]))), load_u8(packed, at + _CODES)
        store(weights, to, lookup(load(_LEVELS, 0), codes) * scale)
        store(weights, to + LANES, lookup(load(_LEVELS, 0), codes >> 4) * scale)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.MXFP4, BLOCK_MXFP4, packed)
    scales = np.ldexp(np.float32(1), blocks["exponent"].astype(np.int32) - 128)
    return (scales[..., None] * _LEVELS[nibbles(blocks["codes"])]).reshape(len(packed), -1)


SCHEME: Final = flat_scheme(TensorType.MXFP4, BLOCK_MXFP4, _decode, decode_oracle, _encode)
