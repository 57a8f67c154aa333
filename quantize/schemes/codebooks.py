"""The codebooks of the i-quants: a few groups of weights out of all that could be, each known by a short number.

An entry is a group of eight values, each one of three, or of four values, each one of eight. Numbered in base three or
eight, the first value being the lowest digit, the entries of a codebook ascend; which numbers occur is the data of the
format, kept in codebook_sets.py. Source: the tables iq1s_grid, iq2xxs_grid, ... in ggml-common.h of llama.cpp.
"""

from __future__ import annotations

from base64 import b64decode
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.quantize.schemes import codebook_sets

_TERNARY: Final = (-1, 0, 1)
_IQ2_VALUES: Final = (8, 25, 43)
_IQ3_XXS_VALUES: Final = (4, 12, 20, 28, 36, 44, 52, 62)
_IQ3_S_VALUES: Final = (1, 3, 5, 7, 9, 11, 13, 15)


def _entries(bitmap: str, values: tuple[int, ...], length: int) -> NDArray[np.int8]:
    members = np.unpackbits(np.frombuffer(b64decode(bitmap), np.uint8), bitorder="little")
    digits = np.flatnonzero(members)[:, None] // len(values) ** np.arange(length) % len(values)
    entries: NDArray[np.int8] = np.array(values, np.int8)[digits]
    entries.flags.writeable = False  # one array serves all callers
    return entries


@cache
def iq1() -> NDArray[np.int8]:
    """2048 entries of 8 for IQ1_S and IQ1_M: int8 [2048, 8]."""
    return _entries(codebook_sets.IQ1_S, _TERNARY, 8)


@cache
def iq2_xxs() -> NDArray[np.int8]:
    """256 entries of 8: int8 [256, 8]."""
    return _entries(codebook_sets.IQ2_XXS, _IQ2_VALUES, 8)


@cache
def iq2_xs() -> NDArray[np.int8]:
    """512 entries of 8: int8 [512, 8]."""
    return _entries(codebook_sets.IQ2_XS, _IQ2_VALUES, 8)


@cache
def iq2_s() -> NDArray[np.int8]:
    """1024 entries of 8: int8 [1024, 8]."""
    return _entries(codebook_sets.IQ2_S, _IQ2_VALUES, 8)


@cache
def iq3_xxs() -> NDArray[np.int8]:
    """256 entries of 4: int8 [256, 4]."""
    return _entries(codebook_sets.IQ3_XXS, _IQ3_XXS_VALUES, 4)


@cache
def iq3_s() -> NDArray[np.int8]:
    """512 entries of 4: int8 [512, 4]."""
    return _entries(codebook_sets.IQ3_S, _IQ3_S_VALUES, 4)


def signs(masks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """For the oracles: bytes [...] of eight signs to float32 [..., 8], -1 where the bit is set, else 1."""
    return np.float32(1) - np.float32(2) * np.unpackbits(masks[..., None], axis=-1, bitorder="little")


def with_parity(sevens: NDArray[np.integer]) -> NDArray[np.uint8]:
    """For the oracles: numbers of seven bits to bytes whose top bit makes the number of bits set even."""
    complete: NDArray[np.uint8] = (sevens | np.bitwise_count(sevens) % 2 << 7).astype(np.uint8)
    return complete
