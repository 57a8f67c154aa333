"""Where keys and values of earlier tokens come from, and where those of new ones go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llmkit.convert.network.arrays import Array, Arrays, StaticArrays


class Cache(Protocol):
    """The keys and values that tokens attend to.

    places: which positions the new tokens have in the text, integers [n], or [batch, n]. own: which slots of the cache,
    integers [n]; they see no later ones. slots: of all keys, integers [slots]. filled: whether there is something to be
    seen in a slot, booleans [batch, 1, 1, slots]; None: all that is not later. total: how many tokens there are with
    the new ones, an integer without axes.
    """

    @property
    def places(self) -> Array: ...

    @property
    def own(self) -> Array: ...

    @property
    def slots(self) -> Array: ...

    @property
    def filled(self) -> Array | None: ...

    @property
    def total(self) -> Array: ...

    def extend(self, block: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Those of new tokens in, [batch, heads, n, width]; all that they may see out, [batch, heads, slots, width]."""
        ...


class StaticCache:
    """A cache of fixed length: two arrays [blocks, 1, heads, positions, width], filled up to `position`.

    `keys` and `values` are the arrays as they are after the tokens that came last.
    """

    def __init__(
        self, arrays: StaticArrays, ids: Array, position: Array, keys: Array, values: Array, shape: Sequence[int]
    ) -> None:
        self._arrays = arrays
        self._position = position
        self.keys, self.values = keys, values
        self.places = self.own = arrays.positions(ids) + position
        self.filled = None
        self.slots = arrays.count(shape[3])
        self.total = position + ids.shape[1]

    def extend(self, block: int, keys: Array, values: Array) -> tuple[Array, Array]:
        a = self._arrays
        self.keys = a.put(self.keys, block, keys, self._position)
        self.values = a.put(self.values, block, values, self._position)
        return a.of_block(self.keys, block), a.of_block(self.values, block)


class GrowingCache:
    """A cache to which new keys and values are appended: those of earlier tokens in, `present` after all blocks.

    past: of each block keys and values, [1, heads, earlier tokens, width].
    """

    def __init__(
        self, arrays: Arrays, past: Sequence[tuple[Array, Array]], *, places: Array, slots: Array, total: Array
    ) -> None:
        self._arrays = arrays
        self._past = past
        self.places = self.own = places
        self.slots, self.total = slots, total
        self.filled = None
        self.present: list[tuple[Array, Array]] = []

    def extend(self, block: int, keys: Array, values: Array) -> tuple[Array, Array]:
        old = self._past[block]
        found = tuple(self._arrays.concatenate(pair, 2) for pair in zip(old, (keys, values), strict=True))
        self.present.append((found[0], found[1]))
        return found[0], found[1]
