"""What the K-quant schemes share on the NumPy side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.types import TensorType, tensor_bytes


def flat(type: TensorType, rows: Rows, packed: Packed) -> tuple[Rows, Packed]:
    """Both arrays as flat views, checked against each other: the kernels do not check bounds.

    Raises ValueError if the shapes do not belong together or an array is not contiguous.
    """
    if rows.ndim != 2 or packed.ndim != 2:
        raise ValueError(f"{type.name}: expected two matrices, found shapes {rows.shape} and {packed.shape}")
    row_bytes = tensor_bytes(type, (rows.shape[1],))
    if packed.shape != (rows.shape[0], row_bytes):
        raise ValueError(
            f"{type.name}: rows of shape {rows.shape} take bytes of shape {(rows.shape[0], row_bytes)}, "
            f"found {packed.shape}"
        )
    if not (rows.flags.c_contiguous and packed.flags.c_contiguous):
        raise ValueError(f"{type.name}: both arrays must be contiguous")
    return rows.reshape(-1), packed.reshape(-1)


def superblocks(packed: Packed, block: np.dtype[Any]) -> NDArray[Any]:
    """Bytes [n, row_bytes] as blocks [n, row_bytes / block bytes]."""
    return np.ascontiguousarray(packed).view(block)


def unpack_scales(blocks: NDArray[Any]) -> tuple[Rows, Rows]:
    """Scales and minimums [..., 8] as float32 of blocks with d, dmin and 12 bytes of eight 6-bit pairs.

    The bytes are described in `llmkit.kernels.kquant_scales`.
    """
    low, middle, high = (blocks["scales"][..., i : i + 4] for i in (0, 4, 8))
    scales = np.concatenate([low & 63, high & 15 | low >> 6 << 4], axis=-1)
    minimums = np.concatenate([middle & 63, high >> 4 | middle >> 6 << 4], axis=-1)
    d, dmin = (blocks[name].astype(np.float32)[..., None] for name in ("d", "dmin"))
    return d * scales.astype(np.float32), dmin * minimums.astype(np.float32)
