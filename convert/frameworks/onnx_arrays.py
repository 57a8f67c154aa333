"""The decoder's operations as nodes of an ONNX graph, all of them standard operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from llmkit.convert.network.arrays import Array
from llmkit.convert.network.recorded import Kind, Recorded, Recorder
from llmkit.convert.onnx.graph import Graph, Value

# Gelu is in the standard from 20 on; TensorRT 10 and OpenVINO read it.
OPSET: Final = 20
_DTYPES: Final[dict[Kind, Any]] = {"float": np.float32, "integer": np.int64}
_BOOLEAN: Final = ("LessOrEqual", "Greater", "And")


class OnnxArrays(Recorder):
    """Adds nodes to `graph`, which are named by their operators and numbers."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._n_nodes = 0

    def wrap(self, value: Value, kind: Kind = "float") -> Recorded:
        """A value of the graph as an array."""
        return Recorded(value, kind, self)

    def _nodes(self, type: str, *inputs: Value | None, n_outputs: int = 1, **attributes: Any) -> Sequence[Value]:
        self._n_nodes += 1
        name = f"{type}.{self._n_nodes}"
        return self._graph.ops(type, *inputs, name=name, n_outputs=n_outputs, **attributes)

    def _node(
        self, type: str, x: Recorded, *more: Value | None, kind: Kind | None = None, **attributes: Any
    ) -> Recorded:
        (value,) = self._nodes(type, x.value, *more, **attributes)
        return Recorded(value, kind or x.kind, self)

    def _integers(self, *values: int) -> Value:
        return self._graph.constant(values, np.int64)

    def _operand(self, x: Recorded | float, kind: Kind) -> Value:
        return x.value if isinstance(x, Recorded) else self._graph.constant(x, _DTYPES[kind])

    def binary(self, operation: str, x: Recorded, y: Recorded | float) -> Recorded:
        return self._node(operation, x, self._operand(y, x.kind), kind="boolean" if operation in _BOOLEAN else x.kind)

    def range(self, n: Recorded) -> Recorded:
        """0, 1, ... n - 1, for an integer without axes."""
        zero, one = (self._graph.constant(i, np.int64) for i in (0, 1))
        (value,) = self._nodes("Range", zero, n.value, one)
        return Recorded(value, "integer", self)

    def size(self, x: Recorded, axis: int) -> Recorded:
        """An integer without axes."""
        (shape,) = self._nodes("Shape", x.value)
        (value,) = self._nodes("Gather", shape, self._graph.constant(axis, np.int64), axis=0)
        return Recorded(value, "integer", self)

    def positions(self, ids: Array) -> Array:
        return self.range(self.size(ids, 1))

    def count(self, n: int) -> Array:
        return self.wrap(self._graph.constant(np.arange(n), np.int64), "integer")

    def take(self, table: Array, rows: Array) -> Array:
        return self._node("Gather", table, rows.value, axis=0)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return self._node("Reshape", x, self._integers(*shape))

    def transpose(self, x: Array, axes: Sequence[int]) -> Array:
        return self._node("Transpose", x, perm=list(axes))

    def split(self, x: Array, sizes: Sequence[int]) -> Sequence[Array]:
        values = self._nodes("Split", x.value, self._integers(*sizes), n_outputs=len(sizes), axis=-1)
        return [Recorded(value, x.kind, self) for value in values]

    def concatenate(self, parts: Sequence[Array], axis: int) -> Array:
        first, *others = parts
        return self._node("Concat", first, *(part.value for part in others), axis=axis) if others else first

    def where(self, condition: Array, x: Array, otherwise: Array | float) -> Array:
        return self._node("Where", condition, x.value, self._operand(otherwise, x.kind), kind=x.kind)

    def matmul(self, x: Array, y: Array) -> Array:
        return self._node("MatMul", x, y.value)

    def inverse_root(self, x: Array) -> Array:
        return self._node("Reciprocal", self._node("Sqrt", x))

    def mean(self, x: Array) -> Array:
        return self._node("ReduceMean", x, self._integers(-1), keepdims=1)

    def sum(self, x: Array, axis: int) -> Array:
        return self._node("ReduceSum", x, self._integers(axis), keepdims=0)

    def softmax(self, x: Array) -> Array:
        return self._node("Softmax", x, axis=-1)

    def tanh(self, x: Array) -> Array:
        return self._node("Tanh", x)

    def sigmoid(self, x: Array) -> Array:
        return self._node("Sigmoid", x)

    def bounded(self, x: Array, low: float | None, high: float) -> Array:
        bounds = (None if bound is None else self._operand(bound, x.kind) for bound in (low, high))
        return self._node("Clip", x, *bounds)

    def largest(self, x: Array, n: int) -> tuple[Array, Array]:
        values, places = self._nodes("TopK", x.value, self._integers(n), n_outputs=2, axis=-1)
        return Recorded(values, x.kind, self), Recorded(places, "integer", self)

    def without_last(self, x: Array) -> Array:
        return self._node("Slice", x, *(self._integers(i) for i in (0, -1, -1)))

    def without_column(self, x: Array) -> Array:
        return self._node("Squeeze", x, self._integers(-1))

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        # Gemm takes the weight as it is stored, and matrices only.
        rows, columns = weight.value.shape
        flat = self.reshape(x, (-1, columns))
        product = self._node("Gemm", flat, weight.value, None if bias is None else bias.value, transB=1)
        return self.reshape(product, (1, -1, rows))

    def gelu_tanh(self, x: Array) -> Array:
        return self._node("Gelu", x, approximate="tanh")
