"""TQ1_0: superblocks of 256 weights, each -d, 0 or d, five in a byte, 1.6875 bits per weight; read only.

54 bytes: 48 bytes of five weights, four bytes of four weights, float16 d. A byte b stands for the fraction b / 256,
whose leading digits in base three are the weights plus one. Digit n of byte l is weight 32 n + l in the first 32 bytes,
weight 160 + 16 n + l in the next 16, weight 240 + 4 n + l in the last four. Source: ggml-common.h (block_tq1_0) and
ggml-quants.c (dequantize_row_tq1_0) of llama.cpp.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.kernels.blocks import get_f16
from llmkit.kernels.intlanes import get_u32, lane_numbers, load_u8, select_int, splat_int, to_float
from llmkit.kernels.jit import BYTES_IN, FLOATS_OUT, helper, kernel
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.lanes import LANES, store
from llmkit.quantize.schemes.base import Packed, Rows
from llmkit.quantize.schemes.flat import as_blocks, flat_scheme
from llmkit.types import TensorType

BLOCK: Final = np.dtype([("fives", "u1", 48), ("fours", "u1", 4), ("d", "<f2")])

_BYTES: Final = 54
_FOURS: Final = 48
_D: Final = 52


@helper
def _store_digits(fractions: Any, n_digits: Any, d: Any, weights: Any, start: Any, stride: Any) -> None:
    """Digit n of each fraction, less one and times d, to the sixteen weights at start + stride * n."""
    for n in range(n_digits):
        tripled = fractions + (fractions << 1)
        store(weights, start + stride * n, to_float((tripled >> 8) - 1) * d)
        fractions = tripled & 255


@kernel(BYTES_IN, FLOATS_OUT)
def _decode(packed: NDArray[np.uint8], weights: NDArray[np.float32]) -> None:
    for block in range(weights.size // SUPERBLOCK):
        at, start = block * _BYTES, block * SUPERBLOCK
        d = get_f16(packed, at + _D)
        for i in range(0, 32, LANES):
            _store_digits(load_u8(packed, at + i), 5, d, weights, start + i, 32)
        _store_digits(load_u8(packed, at + 32), 5, d, weights, start + 160, LANES)
        # Lane 4 n + l of the last sixteen weights: byte l times 3 ** n.
        fractions = splat_int(get_u32(packed, at + _FOURS)) >> ((lane_numbers() & 3) << 3)
        for n in range(1, 4):
            fractions = select_int(lane_numbers() < 4 * n, fractions, fractions + (fractions << 1))
        _store_digits(fractions & 255, 1, d, weights, start + 240, LANES)


def decode_oracle(packed: Packed) -> Rows:
    """Decode in plain NumPy."""
    blocks = as_blocks(TensorType.TQ1_0, BLOCK, packed)
    powers = 3 ** np.arange(5)[:, None]
    parts = []
    for part, n_digits in ((blocks["fives"][..., :32], 5), (blocks["fives"][..., 32:], 5), (blocks["fours"], 4)):
        digits = part[..., None, :] * powers[:n_digits] % 256 * 3 // 256
        parts.append(digits.reshape(*blocks.shape, -1))
    codes = np.concatenate(parts, axis=-1).astype(np.float32) - np.float32(1)
    weights: Rows = (codes * blocks["d"].astype(np.float32)[..., None]).reshape(len(packed), -1)
    return weights


SCHEME: Final = flat_scheme(TensorType.TQ1_0, BLOCK, _decode, decode_oracle)
