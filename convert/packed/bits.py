"""Codes of 2, 3, 4 or 8 bits out of 32-bit words, and what groups of them stand for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def codes_of(words: NDArray[np.int32], bits: int) -> Codes:
    """Words [rows, n] -> codes [rows, 32 * n / bits]: each row is one stream of bits, lowest bits first.

    The words hold whole groups of codes: three of them 32 codes of 3 bits.
    """
    words = np.ascontiguousarray(words)
    if bits == 8:
        return words.view(np.uint8)  # little-endian
    mask = np.uint8((1 << bits) - 1)
    if 8 % bits == 0:
        octets = words.view(np.uint8)
        codes = np.empty((*octets.shape, 8 // bits), np.uint8)
        for place in range(8 // bits):
            np.bitwise_and(octets >> np.uint8(bits * place), mask, out=codes[..., place])
        return codes.reshape(len(words), -1)
    groups = words.view(np.uint32).reshape(len(words), -1, bits)
    codes = np.empty((*groups.shape[:2], 32), np.uint8)
    for place in range(32):
        word, shift = divmod(bits * place, 32)
        code = groups[..., word] >> np.uint32(shift)
        if shift + bits > 32:  # the rest of the code is in the next word
            code = code | groups[..., word + 1] << np.uint32(32 - shift)
        codes[..., place] = code & np.uint32(mask)
    return codes.reshape(len(words), -1)


def apply_groups(codes: Codes, scales: Floats, zeros: Floats, groups: NDArray[np.integer] | int) -> Floats:
    """(code - zero) * scale of codes [rows, columns], with scales and zeros [rows, groups].

    groups: the group of each column, or how many columns in a row belong to one; the last group may be smaller.
    """
    weights = codes.astype(np.float32, order="C")
    if not isinstance(groups, int):
        weights -= zeros[:, groups]
        weights *= scales[:, groups]
        return weights
    whole = weights.shape[1] // groups * groups
    if whole == weights.shape[1]:
        grouped = weights.reshape(len(weights), -1, groups)  # of a whole array, so it is a view
        grouped -= zeros[..., None]
        grouped *= scales[..., None]
        return weights
    return apply_groups(codes, scales, zeros, np.arange(weights.shape[1]) // groups)
