"""The decoder's operations in JAX."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import lax
from jax import numpy as jnp

from llmkit.convert.network.arrays import Array, StaticArrays

# GPUs and TPUs would round float32 for their matrix units.
_PRECISION = lax.Precision.HIGHEST


class JaxArrays(StaticArrays):
    """Operations on JAX's arrays, whose integers have 32 bits."""

    def positions(self, ids: Array) -> Array:
        return jnp.arange(ids.shape[1])

    def count(self, n: int) -> Array:
        return jnp.arange(n)

    def take(self, table: Array, rows: Array) -> Array:
        return jnp.take(table, rows, axis=0, mode="clip")

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def transpose(self, x: Array, axes: Sequence[int]) -> Array:
        return x.transpose(tuple(axes))

    def split(self, x: Array, sizes: Sequence[int]) -> Sequence[Array]:
        ends = [sum(sizes[:i]) for i in range(1, len(sizes))]
        found: Sequence[Array] = jnp.split(x, ends, axis=-1)
        return found

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array:
        return jnp.concatenate(list(parts), axis)

    def where(self, condition: Array, x: Array, otherwise: Array | float) -> Array:
        return jnp.where(condition, x, otherwise)

    def put(self, cache: Array, block: int, new: Array, position: Array) -> Array:
        return lax.dynamic_update_slice(cache, new[None], (block, 0, 0, position, 0))

    def of_block(self, cache: Array, block: int) -> Array:
        return cache[block]

    def matmul(self, x: Array, y: Array) -> Array:
        return jnp.matmul(x, y, precision=_PRECISION)

    def inverse_root(self, x: Array) -> Array:
        return lax.rsqrt(x)

    def mean(self, x: Array) -> Array:
        return x.mean(-1, keepdims=True)

    def sum(self, x: Array, axis: int) -> Array:
        return x.sum(axis)

    def softmax(self, x: Array) -> Array:
        return jax.nn.softmax(x, axis=-1)

    def tanh(self, x: Array) -> Array:
        return jnp.tanh(x)

    def sigmoid(self, x: Array) -> Array:
        return jax.nn.sigmoid(x)

    def bounded(self, x: Array, low: float | None, high: float) -> Array:
        return jnp.clip(x, low, high)

    def largest(self, x: Array, n: int) -> tuple[Array, Array]:
        # TensorFlow's reader of StableHLO does not know what JAX makes of its own top_k. Equal values keep their order.
        places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        lowest, places = lax.sort((-x, places), num_keys=1, is_stable=True)
        return -lowest[..., :n], places[..., :n]

    def without_last(self, x: Array) -> Array:
        return x[..., :-1]

    def without_column(self, x: Array) -> Array:
        return x.squeeze(-1)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        product = _times_rows(x, weight)
        return product if bias is None else product + bias

    def products(self, q: Array, k: Array) -> Array:
        return _times_rows(q, k)


def _times_rows(x: Array, y: Array) -> Array:
    """x times the rows of y, along the last axis of both: no transposed copy of y, whatever compiles it."""
    together = tuple(range(y.ndim - 2))
    return lax.dot_general(x, y, (((x.ndim - 1,), (y.ndim - 1,)), (together, together)), precision=_PRECISION)
