"""The array operations that a tensor framework brings for the decoder, beside the operators of Python."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Array: TypeAlias = Any  # of whichever framework; +, -, *, /, <=, > and & work on it, with numbers, too


@dataclass(frozen=True, slots=True)
class Attention:
    """How queries attend: `scale` multiplies products, which `softcap` bounds, by a hyperbolic tangent."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None


class Arrays(ABC):
    """One framework's operations.

    Arrays hold floats but where said. Axes may count from the end; of a shape, one size may be -1, which follows from
    the others. What is made of other operations here may be one operation of a framework. `batch` is what shapes begin
    with: 1, or 0 in graphs where that means the size there was before.
    """

    batch = 1

    @abstractmethod
    def positions(self, ids: Array) -> Array:
        """0, 1, ... n - 1, integers, for ids [1, n]."""

    @abstractmethod
    def count(self, n: int) -> Array:
        """0, 1, ... n - 1, integers."""

    @abstractmethod
    def take(self, table: Array, rows: Array) -> Array:
        """Rows of a table by their numbers: [*rows.shape, *table.shape[1:]]."""

    @abstractmethod
    def reshape(self, x: Array, shape: Sequence[int]) -> Array: ...

    @abstractmethod
    def transpose(self, x: Array, axes: Sequence[int]) -> Array: ...

    @abstractmethod
    def split(self, x: Array, sizes: Sequence[int]) -> Sequence[Array]:
        """Parts of the last axis, one after the other."""

    @abstractmethod
    def concatenate(self, parts: Sequence[Array], axis: int) -> Array: ...

    @abstractmethod
    def where(self, condition: Array, x: Array, otherwise: Array | float) -> Array: ...

    @abstractmethod
    def matmul(self, x: Array, y: Array) -> Array: ...

    @abstractmethod
    def inverse_root(self, x: Array) -> Array: ...

    @abstractmethod
    def mean(self, x: Array) -> Array:
        """Over the last axis, which stays with length 1."""

    @abstractmethod
    def sum(self, x: Array, axis: int) -> Array: ...

    @abstractmethod
    def softmax(self, x: Array) -> Array:
        """Over the last axis."""

    @abstractmethod
    def tanh(self, x: Array) -> Array: ...

    @abstractmethod
    def sigmoid(self, x: Array) -> Array: ...

    @abstractmethod
    def bounded(self, x: Array, low: float | None, high: float) -> Array:
        """Values outside of the bounds replaced by them."""

    @abstractmethod
    def largest(self, x: Array, n: int) -> tuple[Array, Array]:
        """The n largest of the last axis, and their places, integers."""

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """x [..., columns] times the rows of a weight [rows, columns]: [..., rows]."""
        product = self.matmul(x, self.transpose(weight, (1, 0)))
        return product if bias is None else product + bias

    def rms_norm(self, x: Array, weight: Array, epsilon: float) -> Array:
        """Over the last axis."""
        return x * self.inverse_root(self.mean(x * x) + epsilon) * weight

    def silu(self, x: Array) -> Array:
        """x times its sigmoid."""
        return x * self.sigmoid(x)

    def gelu_tanh(self, x: Array) -> Array:
        """GELU by a hyperbolic tangent."""
        return 0.5 * x * (1 + self.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))

    def mask(self, seen: Array) -> Array:
        """Whether a query sees a slot, booleans [batch or 1, 1, n, slots], in the form that `attend` takes.

        Made once for all blocks. Every query sees a slot.
        """
        return seen

    def window_mask(self, seen: Array, own: Array, slots: Array, window: int) -> Array:
        """The same, where of the slots that are seen the last `window` count.

        own, slots: numbers of slots, that of each query [batch or 1, 1, n, 1], and all [1, 1, 1, slots].
        """
        return self.mask(seen & (slots > own - window))

    def masked(self, products: Array, mask: Array) -> Array:
        """The products of queries and keys, those that are not to be seen minus infinity."""
        return self.where(mask, products, -math.inf)

    def products(self, q: Array, k: Array) -> Array:
        """Each query [batch, heads, n, width] times each key [batch, heads, slots, width]: [batch, heads, n, slots]."""
        return self.matmul(q, self.transpose(k, (0, 1, 3, 2)))

    def attend(self, how: Attention, q: Array, k: Array, v: Array, mask: Array, sinks: Array | None) -> Array:
        """What queries find: [batch, heads, n, width], like q; k and v are [batch, heads of keys, slots, width].

        sinks: [heads], take a share of the attention of every query.
        """
        grouped = (self.batch, how.n_kv_heads, how.n_heads // how.n_kv_heads)
        # Queries that share keys stand under each other.
        rows = self.reshape(q, (self.batch, how.n_kv_heads, -1, how.head_dim))
        products = self.products(rows, k) * how.scale
        if how.softcap:
            products = self.tanh(products / how.softcap) * how.softcap
        products = self.masked(products, self.concatenate([mask] * grouped[2], -2))
        if sinks is None:
            shares = self.softmax(products)
        else:
            # One for each query: what is added is 0 in the shape of the queries.
            each = 0 * self.sum(self.reshape(q, (*grouped, -1, how.head_dim)), -1) + self.reshape(
                sinks, (1, *grouped[1:], 1)
            )
            each = self.reshape(each, (self.batch, how.n_kv_heads, -1, 1))
            shares = self.without_last(self.softmax(self.concatenate([products, each], -1)))
        return self.reshape(self.matmul(shares, v), (self.batch, how.n_heads, -1, how.head_dim))

    @abstractmethod
    def without_last(self, x: Array) -> Array:
        """All but the last of the last axis."""

    @abstractmethod
    def without_column(self, x: Array) -> Array:
        """What has one column, without the last axis."""


class StaticArrays(Arrays):
    """With operations on caches of fixed length, for frameworks that have those."""

    @abstractmethod
    def put(self, cache: Array, block: int, new: Array, position: Array) -> Array:
        """A cache [blocks, 1, heads, positions, width] with the rows of a block from `position` on replaced.

        new: [1, heads, n, width]. The cache that is given may change; the one that is returned is to be used.
        """

    @abstractmethod
    def of_block(self, cache: Array, block: int) -> Array:
        """A block's part of a cache, [1, heads, positions, width]."""
