"""The decoder's operations as operations of Core ML's model intermediate language (MIL), in half precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from coremltools.converters.mil import Builder as mb

from llmkit.convert.network.arrays import Array, Attention
from llmkit.convert.network.recorded import Kind, Recorded, Recorder

_DTYPES: Final[dict[Kind, Any]] = {"float": np.float16, "integer": np.int32}
_LARGEST: Final = float(np.finfo(np.float16).max)
_SMALLEST: Final = float(np.finfo(np.float16).tiny)
_BINARY: Final = {
    "Add": mb.add,
    "Sub": mb.sub,
    "Mul": mb.mul,
    "Div": mb.real_div,
    "LessOrEqual": mb.less_equal,
    "Greater": mb.greater,
    "And": mb.logical_and,
}
_BOOLEAN: Final = ("LessOrEqual", "Greater", "And")


class CoreMlArrays(Recorder):
    """Adds operations to the MIL function that is open."""

    def __init__(self) -> None:
        self._repeated: dict[tuple[Recorded, int], Array] = {}

    def wrap(self, value: Any, kind: Kind = "float") -> Recorded:
        """A variable of MIL as an array."""
        return Recorded(value, kind, self)

    def _operand(self, x: Recorded | float, kind: Kind) -> Any:
        if isinstance(x, Recorded):
            return x.value
        # Masks stay finite: what is lowest comes to nothing in a softmax, too.
        return _DTYPES[kind](max(x, -_LARGEST) if kind == "float" else x)

    def binary(self, operation: str, x: Recorded, y: Recorded | float) -> Recorded:
        found = _BINARY[operation](x=x.value, y=self._operand(y, x.kind))
        return Recorded(found, "boolean" if operation in _BOOLEAN else x.kind, self)

    def size(self, x: Recorded, axis: int) -> Recorded:
        """Of an axis: integers [1]."""
        shape = mb.shape(x=x.value)
        return self.wrap(mb.slice_by_index(x=shape, begin=[axis], end=[axis + 1]), "integer")

    def positions(self, ids: Array) -> Array:
        n = mb.squeeze(x=self.size(ids, 1).value, axes=[0])
        return self.wrap(mb.range_1d(start=np.int32(0), end=n, step=np.int32(1)), "integer")

    def count(self, n: int) -> Array:
        return self.wrap(mb.const(val=np.arange(n, dtype=np.int32)), "integer")

    def take(self, table: Array, rows: Array) -> Array:
        return self.wrap(mb.gather(x=table.value, indices=rows.value, axis=0), table.kind)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return self.wrap(mb.reshape(x=x.value, shape=list(shape)), x.kind)

    def transpose(self, x: Array, axes: Sequence[int]) -> Array:
        return self.wrap(mb.transpose(x=x.value, perm=list(axes)), x.kind)

    def split(self, x: Array, sizes: Sequence[int]) -> Sequence[Array]:
        return [self.wrap(part, x.kind) for part in mb.split(x=x.value, split_sizes=list(sizes), axis=-1)]

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array:
        first, *others = parts
        return self.wrap(mb.concat(values=[part.value for part in parts], axis=axis), first.kind) if others else first

    def where(self, condition: Array, x: Array, otherwise: Array | float) -> Array:
        return self.wrap(mb.select(cond=condition.value, a=x.value, b=self._operand(otherwise, x.kind)), x.kind)

    def matmul(self, x: Array, y: Array) -> Array:
        return self.wrap(mb.matmul(x=x.value, y=y.value))

    def inverse_root(self, x: Array) -> Array:
        return self.wrap(mb.rsqrt(x=x.value, epsilon=np.float16(0)))

    def mean(self, x: Array) -> Array:
        return self.wrap(mb.reduce_mean(x=x.value, axes=[-1], keep_dims=True))

    def sum(self, x: Array, axis: int) -> Array:
        return self.wrap(mb.reduce_sum(x=x.value, axes=[axis], keep_dims=False))

    def softmax(self, x: Array) -> Array:
        return self.wrap(mb.softmax(x=x.value, axis=-1))

    def tanh(self, x: Array) -> Array:
        return self.wrap(mb.tanh(x=x.value))

    def sigmoid(self, x: Array) -> Array:
        return self.wrap(mb.sigmoid(x=x.value))

    def bounded(self, x: Array, low: float | None, high: float) -> Array:
        low = -_LARGEST if low is None else low
        return self.wrap(mb.clip(x=x.value, alpha=np.float16(low), beta=np.float16(high)))

    def largest(self, x: Array, n: int) -> tuple[Array, Array]:
        values, places = mb.topk(x=x.value, k=n, axis=-1)
        return self.wrap(values), self.wrap(places, "integer")

    def without_last(self, x: Array) -> Array:
        rest = x.value.shape[-1] - 1
        return self.wrap(mb.split(x=x.value, split_sizes=[rest, 1], axis=-1)[0], x.kind)

    def without_column(self, x: Array) -> Array:
        return self.wrap(mb.squeeze(x=x.value, axes=[-1]), x.kind)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return self.wrap(mb.linear(x=x.value, weight=weight.value, bias=None if bias is None else bias.value))

    def rms_norm(self, x: Array, weight: Array, epsilon: float) -> Array:
        # Squares of what models have in their streams are beyond half precision; those of values up to 1 are not.
        largest = mb.reduce_max(x=mb.abs(x=x.value), axes=[-1], keep_dims=True)
        largest = self.wrap(mb.maximum(x=largest, y=np.float16(_SMALLEST)))
        scaled = x / largest
        least = self.wrap(mb.real_div(x=np.float16(math.sqrt(epsilon)), y=largest.value))
        return scaled * self.inverse_root(self.mean(scaled * scaled) + least * least) * weight

    def silu(self, x: Array) -> Array:
        return self.wrap(mb.silu(x=x.value))

    def gelu_tanh(self, x: Array) -> Array:
        return self.wrap(mb.gelu(x=x.value, mode="TANH_APPROXIMATION"))

    def attend(self, how: Attention, q: Array, k: Array, v: Array, mask: Array, sinks: Array | None) -> Array:
        if how.softcap or sinks is not None:
            return super().attend(how, q, k, v, mask, sinks)
        # Queries that share keys stand under each other, so that no key is repeated. The operation scales by the width.
        rows = self.reshape(q, (1, how.n_kv_heads, -1, how.head_dim))
        factor = how.scale * math.sqrt(how.head_dim)
        rows = rows if abs(factor - 1) < 1e-6 else rows * factor
        seen = self._for_every_query(mask, how.n_heads // how.n_kv_heads)
        found = mb.scaled_dot_product_attention(query=rows.value, key=k.value, value=v.value, attn_mask=seen.value)
        return self.reshape(self.wrap(found), (1, how.n_heads, -1, how.head_dim))

    def _for_every_query(self, mask: Recorded, n: int) -> Array:
        """A mask as often as queries share keys, made once for all blocks."""
        if (mask, n) not in self._repeated:
            self._repeated[mask, n] = self.concatenate([mask] * n, -2)
        return self._repeated[mask, n]
