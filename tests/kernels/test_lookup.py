"""Looking up lanes in a table of lanes, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from llmkit.kernels.intlanes import bits_of, load_u8, splat_int, store_i32
from llmkit.kernels.jit import BYTES_IN, FLOATS_IN, FLOATS_OUT, INTS_OUT, kernel
from llmkit.kernels.lanes import load, store
from llmkit.kernels.lookup import lookup


@kernel(FLOATS_IN, BYTES_IN, types.int64, FLOATS_OUT, INTS_OUT)
def _look_up(table: Any, index: Any, higher: int, floats: Any, words: Any) -> None:
    at = load_u8(index, 0) | splat_int(np.int32(higher << 4))
    store(floats, 0, lookup(load(table, 0), at))
    store_i32(words, 0, lookup(bits_of(load(table, 0)), at))


def test_looks_up_floats_and_words_by_the_low_four_bits(rng: np.random.Generator) -> None:
    for _ in range(200):
        # Any bits: denormals and signalling NaN must come through as they are.
        table = rng.integers(0, 1 << 32, 16, np.uint32)
        index = rng.integers(0, 256, 16, np.uint8)
        floats, words = np.empty(16, np.float32), np.empty(16, np.int32)
        for higher in (0, 1, -1):
            _look_up(table.view(np.float32), index, higher, floats, words)
            np.testing.assert_array_equal(floats.view(np.uint32), table[index & 15])
            np.testing.assert_array_equal(words.view(np.uint32), table[index & 15])
