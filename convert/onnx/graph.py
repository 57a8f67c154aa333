"""An ONNX graph as it grows: nodes one after the other, and weights that lie in a file beside it.

Built with onnx-ir. The operators beyond the standard are ONNX Runtime's, domain com.microsoft
(docs/ContribOperators.md there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from llmkit.convert.plan import PlannedTensor
from llmkit.quantize.blockwise import BlockwiseFormat
from llmkit.quantize.schemes import array_widths
from llmkit.types import TensorType

Value = ir.Value
MICROSOFT: Final = "com.microsoft"
# RMSNormalization is in the standard from 23 on, Split into equal parts from 18.
_OPSET: Final = 23
_OLDER_OPSET: Final = 21
_IR_VERSION: Final = 11

_DTYPES: Final = {
    TensorType.F32: ir.DataType.FLOAT,
    TensorType.F16: ir.DataType.FLOAT16,
    TensorType.BF16: ir.DataType.BFLOAT16,
}


def dtype_of(type: TensorType) -> ir.DataType:
    """ONNX's name of a float type."""
    return _DTYPES[type]


class Graph:
    """A graph under construction. Weights are found in the file `data` when the model is loaded.

    `standard`: see `llmkit.convert.onnx.providers.Provider`. `opset`: of a graph that has standard operators only.
    """

    def __init__(self, name: str, data: str, *, standard: bool, opset: int | None = None) -> None:
        operators = {"": _OPSET if standard else _OLDER_OPSET, MICROSOFT: 1} if opset is None else {"": opset}
        self._graph = ir.Graph((), (), nodes=(), opset_imports=operators, name=name)
        self.standard = standard
        self._data = data
        self._weights: dict[str, Value] = {}
        self._constants: dict[tuple[Any, ...], Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> Value:
        """A new input; names stand for sizes that are known when the model runs."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._graph.inputs.append(value)
        return value

    def output(self, value: Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """Make `value` an output of this name."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._graph.outputs.append(value)

    def op(self, type: str, *inputs: Value | None, domain: str = "", name: str, **attributes: Any) -> Value:
        """The only output of a new node."""
        return self.ops(type, *inputs, domain=domain, name=name, n_outputs=1, **attributes)[0]

    def ops(
        self,
        type: str,
        *inputs: Value | None,
        domain: str = "",
        name: str,
        n_outputs: int,
        unused: int = 0,
        **attributes: Any,
    ) -> Sequence[Value]:
        """All outputs of a new node; inputs that are None are left out, and so are `unused` outputs after the first."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.node(type, given, attributes, domain=domain, num_outputs=n_outputs, name=name)
        for number, value in enumerate(node.outputs):
            value.name = "" if 0 < number <= unused else f"{name}.{number}" if n_outputs > 1 else name
        self._graph.append(node)
        return node.outputs

    def constant(self, values: Any, dtype: Any) -> Value:
        """A small constant, kept in the graph itself."""
        array = np.array(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            self._constants[key] = self._initializer(name, ir.tensor(array, name=name))
        return self._constants[key]

    def weight(self, tensor: PlannedTensor) -> Value:
        """A tensor of a float type."""
        return self.external(tensor.name, _DTYPES[tensor.ggml_type], tensor.shape, tensor.offset, tensor.nbytes)

    def blocks(self, tensor: PlannedTensor, *, flat: bool) -> tuple[Value, Value, Value | None]:
        """Codes, scales and zero points of a tensor in a blockwise form, as the operators take them.

        flat: codes as [..., rows, bytes], which GatherBlockQuantized and QMoE take, not as [rows, blocks, bytes]. Both
        may be asked for of one tensor: they are the same bytes of the file.
        """
        form = tensor.type
        assert isinstance(form, BlockwiseFormat)
        rows, columns = tensor.matrix
        widths = array_widths(form, columns)
        ranges = tensor.ranges(0, rows)
        u8, floats = ir.DataType.UINT8, ir.DataType.FLOAT16 if form.half_scales else ir.DataType.FLOAT
        outer = tensor.shape[:-1]
        shape = (*outer, widths[0]) if flat else form.codes_shape(rows, columns)
        name = tensor.name
        codes = self.external(f"{name}.codes{'.rows' if flat else ''}", u8, shape, *ranges[0])
        scales = self.external(f"{name}.scales", floats, (*outer, form.n_blocks(columns)), *ranges[1])
        if form.symmetric:
            return codes, scales, None
        zeros = self.external(f"{name}.zero_points", u8, (*outer, widths[2]), *ranges[2])
        return codes, scales, zeros

    def external(self, name: str, dtype: ir.DataType, shape: Sequence[int], offset: int, length: int) -> Value:
        """An array in the file of weights, by its place there in bytes."""
        if name not in self._weights:
            tensor = ir.ExternalTensor(self._data, offset, length, dtype, shape=ir.Shape(shape), name=name)
            self._weights[name] = self._initializer(name, tensor)
        return self._weights[name]

    def _initializer(self, name: str, tensor: Any) -> Value:
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def serialize(self, producer: str, version: str) -> bytes:
        """The model, as model.onnx has it."""
        model = ir.Model(self._graph, ir_version=_IR_VERSION, producer_name=producer, producer_version=version)
        found: bytes = ir.to_proto(model).SerializeToString()
        return found
