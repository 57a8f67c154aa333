"""What the K-quant schemes share in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.quantize.schemes.base import Rows


def unpack_scales(blocks: NDArray[Any]) -> tuple[Rows, Rows]:
    """Scales and minimums [..., 8] as float32 of blocks with d, dmin and 12 bytes of eight 6-bit pairs.

    The bytes are described in `llmkit.kernels.kquant_scales`.
    """
    low, middle, high = (blocks["scales"][..., i : i + 4] for i in (0, 4, 8))
    scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=-1)
    minimums = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=-1)
    d, dmin = (blocks[name].astype(np.float32)[..., None] for name in ("d", "dmin"))
    return d * scales.astype(np.float32), dmin * minimums.astype(np.float32)
