"""Lanes looked up in a codebook, and their signs, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from llmkit.kernels.codebook import CODEBOOK, four_entries, negated_where, two_entries, with_parity
from llmkit.kernels.intlanes import lane_numbers, load_u8, lower_halves, store_i32, upper_halves
from llmkit.kernels.jit import BYTES_IN, FLOATS_IN, FLOATS_OUT, INTS_OUT, kernel, source
from llmkit.kernels.lanes import load, store


@kernel(CODEBOOK, BYTES_IN, INTS_OUT)
def _look_up(codebook: Any, indices: Any, out: Any) -> None:
    store_i32(out, 0, two_entries(codebook, indices[0], indices[1]))
    store_i32(out, 16, four_entries(codebook, indices[0], indices[1], indices[2], indices[3]))


@kernel(BYTES_IN, INTS_OUT)
def _rearrange(values: Any, out: Any) -> None:
    left, right = load_u8(values, 0), load_u8(values, 16)
    store_i32(out, 0, lower_halves(left, right))
    store_i32(out, 16, upper_halves(left, right))
    store_i32(out, 32, lane_numbers())


@kernel(FLOATS_IN, types.int64, FLOATS_OUT)
def _negate(values: Any, bits: int, out: Any) -> None:
    store(out, 0, negated_where(load(values, 0), bits))


@kernel(source(types.int32), INTS_OUT)
def _complete(words: Any, out: Any) -> None:
    for i in range(words.size):
        out[i] = with_parity(words[i])


def test_entries_are_signed_and_follow_one_another(rng: np.random.Generator) -> None:
    codebook = rng.integers(-128, 128, 2048, np.int8)
    out = np.empty(32, np.int32)
    for _ in range(20):
        indices = rng.integers(0, 256, 4, np.uint8)
        _look_up(codebook, indices, out)
        np.testing.assert_array_equal(out[:16], codebook.reshape(-1, 8)[indices[:2]].reshape(-1))
        np.testing.assert_array_equal(out[16:], codebook.reshape(-1, 4)[indices].reshape(-1))


def test_halves_and_lane_numbers() -> None:
    values = np.arange(100, 132, dtype=np.uint8)
    out = np.empty(48, np.int32)
    _rearrange(values, out)
    left, right = values[:16], values[16:]
    np.testing.assert_array_equal(out[:16], [*left[:8], *right[:8]])
    np.testing.assert_array_equal(out[16:32], [*left[8:], *right[8:]])
    np.testing.assert_array_equal(out[32:], np.arange(16))


def test_bits_negate_also_zeros(rng: np.random.Generator) -> None:
    values = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, 1e-45, 3e38] * 2, np.float32)
    out = np.empty(16, np.float32)
    for bits in (0, 0xFFFF, 0x8001, *(int(n) for n in rng.integers(0, 1 << 16, 10))):
        _negate(values, bits, out)
        signs = 1 - 2 * (bits >> np.arange(16) & 1)
        np.testing.assert_array_equal(out.view(np.uint32), (values * signs.astype(np.float32)).view(np.uint32))


def test_every_seven_bits_get_their_parity(rng: np.random.Generator) -> None:
    sevens = np.concatenate([np.arange(128)[:, None].repeat(4, axis=1), rng.integers(0, 128, (200, 4))])
    scales = rng.integers(0, 16, len(sevens))  # on top of the signs, and not to be taken for some
    words = (sevens << np.array([0, 7, 14, 21])).sum(axis=1) | scales << 28
    out = np.empty(len(words), np.int32)
    _complete(words.astype(np.uint32).view(np.int32), out)
    expected = sevens | np.bitwise_count(sevens) % 2 << 7
    np.testing.assert_array_equal(out.view(np.uint8).reshape(-1, 4), expected)
