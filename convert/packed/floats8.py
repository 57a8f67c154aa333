"""The values of 8-bit floats, by their bits.

Formats: OCP 8-bit Floating Point Specification 1.0 (E4M3 without infinities, E5M2 as in IEEE 754); the forms without a
negative zero, "FNUZ", are those of AMD's MI300 (arXiv:2206.02915).
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

# SafeTensors dtype -> bits of the exponent, of the mantissa, bias
_LAYOUTS: Final = {
    "F8_E4M3": (4, 3, 7),
    "F8_E5M2": (5, 2, 15),
    "F8_E4M3FNUZ": (4, 3, 8),
    "F8_E5M2FNUZ": (5, 2, 16),
}
DTYPES: Final = tuple(_LAYOUTS)


@cache
def values_of(dtype: str) -> NDArray[np.float32]:
    """What each byte stands for, float32 [256]."""
    n_exponent, n_mantissa, bias = _LAYOUTS[dtype]
    bits = np.arange(256)
    exponent = bits >> n_mantissa & (1 << n_exponent) - 1
    fraction = (bits & (1 << n_mantissa) - 1) / (1 << n_mantissa)
    magnitude = np.where(exponent > 0, 1 + fraction, fraction) * 2.0 ** (np.maximum(exponent, 1) - bias)
    values: NDArray[np.float32] = np.where(bits & 0x80, -magnitude, magnitude).astype(np.float32)
    if dtype.endswith("FNUZ"):
        values[0x80] = np.nan
    elif dtype == "F8_E4M3":
        values[[0x7F, 0xFF]] = np.nan
    else:
        values[[0x7C, 0xFC]] = np.inf, -np.inf
        values[[*range(0x7D, 0x80), *range(0xFD, 0x100)]] = np.nan
    values.flags.writeable = False
    return values
