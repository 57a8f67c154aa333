"""Reading memory as fast as it goes: what decoding a model does with its weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.jit import FLOATS_IN, FLOATS_OUT, kernel
from llmkit.kernels.lanes import LANES, load, splat, store

_STEP = 4 * LANES


@kernel(FLOATS_IN, FLOATS_OUT)
def read_all(values: NDArray[np.float32], sums: NDArray[np.float32]) -> None:
    """Read every value, of which there are a multiple of 64; `sums`, float32 [16], gets sums that depend on all."""
    a, b, c, d = splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0)), splat(np.float32(0))
    for i in range(0, values.size // _STEP * _STEP, _STEP):
        a = a + load(values, i)
        b = b + load(values, i + LANES)
        c = c + load(values, i + 2 * LANES)
        d = d + load(values, i + 3 * LANES)
    store(sums, 0, a + b + c + d)
