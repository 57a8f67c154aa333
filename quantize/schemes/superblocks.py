"""What the K-quant schemes share in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.quantize.schemes.base import Rows


def unpack_nibbles(blocks: NDArray[Any]) -> NDArray[np.uint8]:
    """Codes of 4 bits, sub-block by sub-block [..., 8, 32], of blocks with 128 bytes `qs`.

    Byte l of the j-th 32 bytes holds code l of sub-block 2 j in its low half, that of sub-block 2 j + 1 in its high.
    """
    low_and_high: NDArray[np.uint8] = np.array([[0], [4]], np.uint8)
    halves = blocks["qs"].reshape(*blocks.shape, 4, 1, 32) >> low_and_high & np.uint8(15)
    return halves.reshape(*blocks.shape, 8, 32)


def unpack_scales(blocks: NDArray[Any]) -> tuple[Rows, Rows]:
    """Scales and minimums [..., 8] as float32 of blocks with d, dmin and 12 bytes of eight 6-bit pairs.

    The bytes are described in `llmkit.kernels.kquant_scales`.
    """
    low, middle, high = (blocks["scales"][..., i : i + 4] for i in (0, 4, 8))
    scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=-1)
    minimums = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=-1)
    d, dmin = (blocks[name].astype(np.float32)[..., None] for name in ("d", "dmin"))
    return d * scales.astype(np.float32), dmin * minimums.astype(np.float32)
