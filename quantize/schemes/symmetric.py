"""What the types with a scale and no minimum share: the search, a tile of weights at a time.

The search is one kernel for all of them, compiled once; each type then packs what it found. A tile is small enough for
both to find it in the processor's cache, and large enough for the calls not to count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from llmkit.kernels.energy import find_mean_squares
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.kquant_symmetric import search
from llmkit.quantize.schemes.flat import Bytes, Floats

NONE: Final = np.empty(0, np.float32)
TILE: Final = 128 * SUPERBLOCK


def tiles(size: int, row: int = SUPERBLOCK) -> Iterator[slice]:
    """Parts of `size` weights, each of whole rows."""
    step = max(row, TILE // row * row)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def search_groups(
    weights: Floats, group: int, reach: int, importance: Floats = NONE, run: int = 0, factor: float = 1
) -> tuple[Floats, Floats, Bytes]:
    """(scales, sums of counts, codes) of the groups of `group` weights of whole rows; see `kquant_symmetric.search`.

    run: a weight counts importance * sqrt(factor * m + w^2), m being the mean square of the `run` weights it is one of;
    0: it counts its importance, or without importance its square.
    """
    means = np.empty(weights.size // run, np.float32) if run else NONE
    if run:
        find_mean_squares(weights, run, factor, means)
    n_groups = weights.size // group
    found, codes = np.empty(2 * n_groups, np.float32), np.empty(weights.size, np.uint8)
    search(weights, np.float32(reach), importance, means, found, codes)
    return found[:n_groups], found[n_groups:], codes
