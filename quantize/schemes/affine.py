"""Encoding with a scale and a minimum: the search, then what each type makes of it, a tile of weights at a time.

The search is one kernel for all types, compiled once; so are the numbers of scales. A tile is small enough for what
they find to stay in the processor's cache, and large enough for the calls not to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmkit.kernels.blocks import BLOCK
from llmkit.kernels.energy import find_mean_squares
from llmkit.kernels.kquant_affine import IMPORTANCE, PARTS, AffineSearch, search
from llmkit.kernels.kquant_rounding import SUPERBLOCK
from llmkit.kernels.kquant_scales import ScaleNumbers, find_scale_numbers
from llmkit.quantize.schemes.flat import Bytes, Floats

TILE: Final = 256 * SUPERBLOCK
_NONE: Final = np.zeros(0, np.float32)

# pack(weights, start, stop, found, packed): encode weights[start : stop], given what the search found.
PackBlocks = Callable[[Floats, int, int, Floats, Bytes], None]
# pack(weights, start, stop, found, factors, numbers, packed): likewise, given the numbers of scales and minimums too.
PackSuperblocks = Callable[[Floats, int, int, Floats, Floats, Bytes, Bytes], None]


def weighted_search(size: int, highest: int) -> AffineSearch:
    """What ggml tries with an importance matrix, whatever the type."""
    return AffineSearch(size, highest, np.float32(-0.9), np.float32(0.05), 36, IMPORTANCE)


def search_tiles(
    weights: Floats, form: AffineSearch, importance: Floats = _NONE, mean_squares: Floats = _NONE, run: int = 1
) -> Iterator[tuple[int, int, Floats]]:
    """(start, stop, found) for each tile of the weights; `found` is overwritten by the next tile's."""
    sub_blocks = min(TILE, weights.size) // form.size
    found = np.empty(PARTS * (-(-sub_blocks // 16) * 16), np.float32)
    for start in range(0, weights.size, TILE):
        stop = min(start + TILE, weights.size)
        search(weights, start, stop, form, importance, mean_squares, run, found)
        yield start, stop, found


def mean_squares_of(weights: Floats, run: int, factor: float = 1) -> Floats:
    """factor times the mean square of each `run` weights."""
    found = np.empty(weights.size // run, np.float32)
    find_mean_squares(weights, run, factor, found)
    return found


def encode_blocks(weights: Floats, packed: Bytes, importance: Floats, highest: int, pack: PackBlocks) -> None:
    """Encode blocks of 32 weights by the importance of their columns, codes 0..highest."""
    columns = importance.size
    mean_squares = mean_squares_of(weights, columns)
    for start, stop, found in search_tiles(weights, weighted_search(BLOCK, highest), importance, mean_squares, columns):
        pack(weights, start, stop, found, packed)


@dataclass(frozen=True)
class SuperblockEncoder:
    """Encodes superblocks whose scales and minimums are numbers times a float16.

    variance_factor: multiplies a superblock's mean square in what a weight counts beside its importance.
    """

    plain: AffineSearch
    plain_numbers: ScaleNumbers
    weighted: AffineSearch
    weighted_numbers: ScaleNumbers
    variance_factor: float
    pack: PackSuperblocks

    def encode(self, weights: Floats, packed: Bytes) -> None:
        """What a scheme's `encode` is."""
        self._pack_tiles(weights, search_tiles(weights, self.plain), self.plain_numbers, packed)

    def encode_weighted(self, weights: Floats, packed: Bytes, importance: Floats) -> None:
        """What a scheme's `encode_weighted` is."""
        mean_squares = mean_squares_of(weights, SUPERBLOCK, self.variance_factor)
        tiles = search_tiles(weights, self.weighted, importance, mean_squares, SUPERBLOCK)
        self._pack_tiles(weights, tiles, self.weighted_numbers, packed)

    def _pack_tiles(
        self, weights: Floats, tiles: Iterator[tuple[int, int, Floats]], form: ScaleNumbers, packed: Bytes
    ) -> None:
        room = TILE // SUPERBLOCK
        factors = np.empty(2 * room, np.float32)
        numbers = np.empty(2 * room * form.sub_blocks, np.uint8)
        for start, stop, found in tiles:
            find_scale_numbers(found, (stop - start) // SUPERBLOCK, form, factors, numbers)
            self.pack(weights, start, stop, found, factors, numbers, packed)
