"""The decoder's operations as nodes of an OpenVINO model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset15 as op
from openvino.utils.node_factory import NodeFactory

from llmkit.convert.network.arrays import Array, Attention
from llmkit.convert.network.recorded import Kind, Recorded, Recorder

_DTYPES: Final[dict[Kind, Any]] = {"float": np.float32, "integer": np.int64}
_BINARY: Final = {
    "Add": op.add,
    "Sub": op.subtract,
    "Mul": op.multiply,
    "Div": op.divide,
    "LessOrEqual": op.less_equal,
    "Greater": op.greater,
    "And": op.logical_and,
}
_OPERATIONS: Final = NodeFactory("opset13")
_BOOLEAN: Final = ("LessOrEqual", "Greater", "And")


def integers(*values: int) -> Any:
    """A constant of int64."""
    return op.constant(np.array(values, np.int64))


class OpenVinoArrays(Recorder):
    """Makes nodes; a size of 0 in a shape is the one there was before."""

    batch = 0

    def wrap(self, node: Any, kind: Kind = "float") -> Recorded:
        """A node as an array."""
        return Recorded(node, kind, self)

    def _operand(self, x: Recorded | float, kind: Kind) -> Any:
        return x.value if isinstance(x, Recorded) else op.constant(np.array(x, _DTYPES[kind]))

    def binary(self, operation: str, x: Recorded, y: Recorded | float) -> Recorded:
        node = _BINARY[operation](x.value, self._operand(y, x.kind))
        return Recorded(node, "boolean" if operation in _BOOLEAN else x.kind, self)

    def size(self, x: Recorded, axis: int) -> Recorded:
        """An integer without axes."""
        node = op.gather(op.shape_of(x.value, "i64"), op.constant(np.int64(axis)), op.constant(np.int64(0)))
        return Recorded(node, "integer", self)

    def range(self, n: Recorded) -> Recorded:
        """0, 1, ... n - 1, for an integer without axes."""
        zero, one = (op.constant(np.int64(i)) for i in (0, 1))
        return Recorded(op.range(zero, n.value, one, "i64"), "integer", self)

    def positions(self, ids: Array) -> Array:
        return self.range(self.size(ids, 1))

    def count(self, n: int) -> Array:
        return self.wrap(integers(*range(n)), "integer")

    def take(self, table: Array, rows: Array) -> Array:
        return self.wrap(op.gather(table.value, rows.value, op.constant(np.int64(0))), table.kind)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return self.wrap(op.reshape(x.value, integers(*shape), True), x.kind)

    def transpose(self, x: Array, axes: Sequence[int]) -> Array:
        return self.wrap(op.transpose(x.value, integers(*axes)), x.kind)

    def split(self, x: Array, sizes: Sequence[int]) -> Sequence[Array]:
        node = op.variadic_split(x.value, op.constant(np.int64(-1)), integers(*sizes))
        return [self.wrap(output, x.kind) for output in node.outputs()]

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array:
        first, *others = parts
        return self.wrap(op.concat([part.value for part in parts], axis), first.kind) if others else first

    def where(self, condition: Array, x: Array, otherwise: Array | float) -> Array:
        return self.wrap(op.select(condition.value, x.value, self._operand(otherwise, x.kind)), x.kind)

    def matmul(self, x: Array, y: Array) -> Array:
        return self.wrap(op.matmul(x.value, y.value, False, False))

    def inverse_root(self, x: Array) -> Array:
        return self.wrap(op.divide(op.constant(np.float32(1)), op.sqrt(x.value)))

    def mean(self, x: Array) -> Array:
        return self.wrap(op.reduce_mean(x.value, integers(-1), True))

    def sum(self, x: Array, axis: int) -> Array:
        return self.wrap(op.reduce_sum(x.value, integers(axis), False))

    def softmax(self, x: Array) -> Array:
        return self.wrap(op.softmax(x.value, -1))

    def tanh(self, x: Array) -> Array:
        return self.wrap(op.tanh(x.value))

    def sigmoid(self, x: Array) -> Array:
        return self.wrap(op.sigmoid(x.value))

    def bounded(self, x: Array, low: float | None, high: float) -> Array:
        return self.wrap(op.clamp(x.value, -np.inf if low is None else low, high))

    def largest(self, x: Array, n: int) -> tuple[Array, Array]:
        node = op.topk(x.value, op.constant(np.int64(n)), -1, "max", "value", "i64")
        return self.wrap(node.output(0), x.kind), self.wrap(node.output(1), "integer")

    def without_last(self, x: Array) -> Array:
        return self.wrap(op.slice(x.value, integers(0), integers(-1), integers(1), integers(-1)), x.kind)

    def without_column(self, x: Array) -> Array:
        return self.wrap(op.squeeze(x.value, integers(-1)), x.kind)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        product = op.matmul(x.value, weight.value, False, True)
        return self.wrap(product if bias is None else op.add(product, bias.value))

    def rms_norm(self, x: Array, weight: Array, epsilon: float) -> Array:
        # In this form OpenVINO knows it and computes it in one go.
        square = op.power(x.value, op.constant(np.float32(2)))
        mean = op.add(op.reduce_mean(square, integers(-1), True), op.constant(np.float32(epsilon)))
        normed = op.multiply(x.value, op.divide(op.constant(np.float32(1)), op.sqrt(mean)))
        return self.wrap(op.multiply(normed, weight.value))

    def silu(self, x: Array) -> Array:
        return self.wrap(op.swish(x.value))

    def gelu_tanh(self, x: Array) -> Array:
        return self.wrap(op.gelu(x.value, "tanh"))

    def mask(self, seen: Array) -> Array:
        kept, hidden = (op.constant(np.float32(value)) for value in (0, -np.inf))
        return self.wrap(op.select(seen.value, kept, hidden))

    def window_mask(self, seen: Array, own: Array, slots: Array, window: int) -> Array:
        # This very form: OpenVINO's pass for paged attention finds the window in it, and else attends to everything.
        near = op.greater(slots.value, op.add(own.value, op.constant(np.int64(-window))))
        both = op.bitwise_and(op.bitwise_and(seen.value, near), seen.value)
        both = op.bitwise_and(op.bitwise_and(seen.value, both), seen.value)
        mask = self.mask(self.wrap(op.broadcast(both, op.shape_of(both)), "boolean")).value
        n = op.reshape(self.size(slots, 3).value, integers(1), False)
        return self.wrap(op.slice(mask, integers(0), n, integers(1), integers(-1)))

    def masked(self, products: Array, mask: Array) -> Array:
        return self.wrap(op.add(products.value, mask.value))

    def attend(self, how: Attention, q: Array, k: Array, v: Array, mask: Array, sinks: Array | None) -> Array:
        if how.softcap:
            return super().attend(how, q, k, v, mask, sinks)
        keys, values = (self._for_every_query(how, x) for x in (k.value, v.value))
        inputs = [q.value, keys, values, mask.value, op.constant(np.float32(how.scale))]
        if sinks is not None:
            inputs.append(op.reshape(sinks.value, integers(1, how.n_heads, 1, 1), False))
        # The function of this name takes no sinks.
        node = _OPERATIONS.create("ScaledDotProductAttention", [x.output(0) for x in inputs], {"causal": False})
        return self.wrap(node)

    def _for_every_query(self, how: Attention, x: Any) -> Any:
        """Heads of keys repeated for the queries that share them; a pattern that OpenVINO takes back."""
        n_groups = how.n_heads // how.n_kv_heads
        if n_groups == 1:
            return x
        wide = op.broadcast(
            op.unsqueeze(x, integers(2)), integers(1, 1, n_groups, 1, 1), broadcast_spec="BIDIRECTIONAL"
        )
        return op.reshape(wide, integers(0, how.n_heads, -1, how.head_dim), True)


def constant(array: Any, type: ov.Type | None = None, shape: Sequence[int] | None = None) -> Any:
    """A constant that uses the memory of an array; type and shape are those of what is packed in it."""
    if type is None:
        return ov.op.Constant(ov.Tensor(array, shared_memory=True))
    return ov.op.Constant(ov.Tensor(array, list(shape or array.shape), type))
