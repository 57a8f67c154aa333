"""Finding values that are not finite."""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from llmkit.kernels.intlanes import bits_of, larger
from llmkit.kernels.jit import kernel, source
from llmkit.kernels.lanes import LANES, any_lane, load

_LARGEST_FINITE = 0x7F7FFFFF  # bits of the largest finite float32
_GROUP = 4 * LANES


@kernel(source(types.float32))
def _first_group(values: NDArray[np.float32]) -> int:
    """Start of the first group of 64 values with one that is not finite, else the size; the size is whole groups."""
    for i in range(0, values.size, _GROUP):
        low = larger(bits_of(load(values, i)) & 0x7FFFFFFF, bits_of(load(values, i + LANES)) & 0x7FFFFFFF)
        high = larger(
            bits_of(load(values, i + 2 * LANES)) & 0x7FFFFFFF, bits_of(load(values, i + 3 * LANES)) & 0x7FFFFFFF
        )
        if any_lane(larger(low, high) > _LARGEST_FINITE):
            return i
    return values.size


def first_nonfinite(values: NDArray[np.float32]) -> int:
    """Index of the first NaN or infinity in a flat contiguous float32 array, -1 if all values are finite."""
    if values.ndim != 1:
        raise ValueError(f"expected a flat array, got {values.shape}")
    whole = values.size - values.size % _GROUP
    start = _first_group(values[:whole]) if whole else 0
    found = np.flatnonzero(~np.isfinite(values[start : start + _GROUP]))
    return int(start + found[0]) if found.size else -1
