"""Evaluates an ML Program as it was saved, with NumPy: operations by the text of MIL's documentation.

It knows the operations that decoders are made of, and nothing of how llmkit records them. Shapes and types that the
file states of every value are checked against what comes out.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]

_WEIGHTS: Final = "Data/com.apple.CoreML/weights/weight.bin"
_BLOB: Final = struct.Struct("<IIQQ")  # 0xDEADBEEF, type, bytes, where they begin
_DTYPES: Final = {"FLOAT16": np.float16, "FLOAT32": np.float32, "INT32": np.int32, "INT8": np.int8, "BOOL": np.bool_}
_FIELDS: Final = {"FLOAT32": "floats", "INT32": "ints", "BOOL": "bools", "STRING": "strings", "FLOAT16": "bytes"}


def load_spec(package: Path) -> Any:
    """The protobuf message of a .mlpackage."""
    import coremltools

    return coremltools.utils.load_spec(str(package))


class MilProgram:
    """The function `main` of a .mlpackage, with its states, which are zeros at first.

    precision: what every result that is a float is rounded to; sums are made in float32. constants: values of constants
    and weights by their names in the program, instead of those in the file. `routed` has, for
    every block and call, the scores that experts were given, [1, n, experts], and those chosen, [1, n, used].
    """

    def __init__(self, package: Path, precision: type = np.float16, constants: Mapping[str, Values] | None = None):
        self.spec = load_spec(package)
        self.function = self.spec.mlProgram.functions["main"]
        self.block = self.function.block_specializations[self.function.opset]
        self._data = (package / _WEIGHTS).read_bytes()
        self._precision = precision
        self.states: dict[str, Values] = {}
        for state in self.spec.description.state:
            self.states[state.name] = np.zeros(tuple(state.type.stateType.arrayType.shape), np.float32)
        self.routed: dict[str, list[tuple[Values, Values]]] = {}
        self.constants: dict[str, Values] = {}
        for operation in self.block.operations:
            if operation.type == "const" or operation.type.startswith("constexpr_"):
                name = operation.outputs[0].name
                found = (constants or {}).get(name)
                self.constants[name] = self._constant(operation) if found is None else found

    def __call__(self, **inputs: Values) -> dict[str, Values]:
        values: dict[str, Values] = {**self.constants, **inputs}
        for operation in self.block.operations:
            if operation.type != "const" and not operation.type.startswith("constexpr_"):
                self._run(operation, values)
        return {name: values[name] for name in self.block.outputs}

    def _run(self, operation: Any, values: dict[str, Values]) -> None:
        arguments: dict[str, Any] = {}
        for name, argument in operation.inputs.items():
            names = [one.name for one in argument.arguments]
            if operation.type in ("read_state", "write_state") and name == "input":
                arguments[name] = names[0]
            else:
                found = [values[one] for one in names]
                arguments[name] = found if name == "values" else found[0]
        if operation.type == "write_state":
            assert arguments["data"].shape == self.states[arguments["input"]].shape
            self.states[arguments["input"]] = arguments["data"]
            return
        if operation.type == "read_state":
            found = self.states[arguments["input"]]
        else:
            found = _OPERATIONS[operation.type](**arguments)
        results = found if isinstance(found, tuple) else (found,)
        for output, result in zip(operation.outputs, results, strict=True):
            values[output.name] = self._checked(output, np.asarray(result))
        if operation.type == "topk":
            _, places = operation.outputs
            self.routed.setdefault(places.name, []).append((arguments["x"], values[places.name]))

    def _checked(self, output: Any, result: Values) -> Values:
        """Of the stated type and shape, rounded."""
        dtype, shape = _stated(output.type)
        known = [size for size, found in zip(shape, result.shape, strict=True) if size not in (None, found)]
        assert not known, f"{output.name}: {result.shape}, not {shape}"
        assert result.dtype.kind == np.dtype(_DTYPES[dtype]).kind, f"{output.name}: {result.dtype}, not {dtype}"
        if result.dtype.kind != "f":
            return result
        return result.astype(self._precision).astype(np.float32)

    def _constant(self, operation: Any) -> Values:
        if operation.type == "const":
            return self._value(operation.attributes["val"])
        assert operation.type == "constexpr_blockwise_shift_scale"
        data, scale = (self._value(operation.inputs[name].arguments[0].value) for name in ("data", "scale"))
        assert set(operation.inputs) == {"data", "scale"}  # no offset
        for axis, (size, n) in enumerate(zip(data.shape, scale.shape, strict=True)):
            scale = np.repeat(scale, size // n, axis)
        return np.float32(data) * scale

    def _value(self, value: Any) -> Values:
        dtype, shape = _stated(value.type)
        sizes = tuple(size or 0 for size in shape)
        if value.HasField("blobFileValue"):
            sentinel, _, nbytes, begin = _BLOB.unpack_from(self._data, value.blobFileValue.offset)
            assert sentinel == 0xDEADBEEF
            raw = self._data[begin : begin + nbytes]
            if dtype == "INT4":  # the first of two has the low half
                codes = np.frombuffer(raw, np.uint8)
                codes = np.stack([codes & 15, codes >> 4], -1).reshape(-1)[: math.prod(sizes)]
                return (np.int8(codes) - np.int8(16) * (codes > 7)).astype(np.int8).reshape(sizes)
            found = np.frombuffer(raw, _DTYPES[dtype])
        else:
            field = getattr(value.immediateValue.tensor, _FIELDS[dtype])
            if dtype == "STRING":
                return np.array(field.values[0])
            found = np.frombuffer(field.values, np.float16) if dtype == "FLOAT16" else np.array(field.values)
        found = found.astype(np.float32) if found.dtype.kind == "f" else found.astype(_DTYPES[dtype])
        return found.reshape(sizes)


def _stated(type: Any) -> tuple[str, tuple[int | None, ...]]:
    """Name of the type and sizes, None where any may come, of a tensor's type in a program."""
    from coremltools.proto import MIL_pb2

    tensor = type.tensorType
    sizes = [size.constant.size if size.HasField("constant") else None for size in tensor.dimensions]
    return MIL_pb2.DataType.Name(tensor.dataType), tuple(sizes)


def _slices(begin: Values, end: Values, begin_mask: Sequence[Any] | None, end_mask: Sequence[Any] | None) -> Any:
    n = len(begin)
    from_start = [False] * n if begin_mask is None else begin_mask
    to_end = [False] * n if end_mask is None else end_mask
    return tuple(
        slice(None if first else int(b), None if last else int(e))
        for b, e, first, last in zip(begin, end, from_start, to_end, strict=True)
    )


def _slice_by_index(x: Values, begin: Values, end: Values, begin_mask: Any = None, end_mask: Any = None) -> Values:
    return x[_slices(begin, end, begin_mask, end_mask)]


def _slice_update(
    x: Values, update: Values, begin: Values, end: Values, begin_mask: Any = None, end_mask: Any = None
) -> Values:
    found, where = x.copy(), _slices(begin, end, begin_mask, end_mask)
    assert found[where].shape == update.shape
    found[where] = update
    return found


def _gather(x: Values, indices: Values, axis: Values, batch_dims: Values, validate_indices: Values) -> Values:
    assert not batch_dims
    assert 0 <= indices.min() <= indices.max() < x.shape[int(axis)]
    return np.take(x, indices, int(axis))


def _topk(
    x: Values, k: Values, axis: Values, ascending: Values, sort: Values, return_indices: Values, **_: Values
) -> tuple[Values, Values]:
    assert sort
    assert return_indices
    assert not ascending
    places = np.argsort(-x, int(axis), kind="stable").take(np.arange(int(k)), int(axis))
    return np.take_along_axis(x, places, int(axis)), places.astype(np.int32)


def _split(x: Values, split_sizes: Values, axis: Values) -> tuple[Values, ...]:
    assert split_sizes.sum() == x.shape[int(axis)]
    return tuple(np.split(x, np.cumsum(split_sizes)[:-1], int(axis)))


def _softmax(x: Values, axis: int | Values) -> Values:
    powers = np.exp(x - x.max(int(axis), keepdims=True))
    found: Values = powers / powers.sum(int(axis), keepdims=True)
    return found


def _attention(query: Values, key: Values, value: Values, attn_mask: Values) -> Values:
    assert attn_mask.dtype == np.bool_
    products = query @ key.swapaxes(-1, -2) / np.float32(math.sqrt(query.shape[-1]))
    products = np.where(attn_mask, products, np.float32(-1e30))
    found: Values = _softmax(products, -1) @ value
    return found


def _gelu(x: Values, mode: Values) -> Values:
    assert str(mode) == "TANH_APPROXIMATION"
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


def _sigmoid(x: Values) -> Values:
    return np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))


def _concat(values: Sequence[Values], axis: Values, interleave: Values) -> Values:
    assert not interleave
    return np.concatenate(values, int(axis))


def _reshape(x: Values, shape: Values) -> Values:
    return x.reshape(shape.tolist())


_OPERATIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "abs": lambda x: np.abs(x),
    "add": lambda x, y: x + y,
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "concat": _concat,
    "gather": _gather,
    "gelu": _gelu,
    "greater": lambda x, y: x > y,
    "identity": lambda x: x,
    "less_equal": lambda x, y: x <= y,
    "linear": lambda x, weight, bias: x @ weight.T + bias,
    "logical_and": lambda x, y: x & y,
    "matmul": lambda x, y, transpose_x, transpose_y: (
        (x.swapaxes(-1, -2) if transpose_x else x) @ (y.swapaxes(-1, -2) if transpose_y else y)
    ),
    "maximum": lambda x, y: np.maximum(x, y),
    "mul": lambda x, y: x * y,
    "range_1d": lambda start, end, step: np.arange(start, end, step, np.int32),
    "real_div": lambda x, y: x / y,
    "reduce_max": lambda x, axes, keep_dims: x.max(tuple(axes), keepdims=bool(keep_dims)),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(axes), keepdims=bool(keep_dims)),
    "reduce_sum": lambda x, axes, keep_dims: x.sum(tuple(axes), keepdims=bool(keep_dims)),
    "reshape": _reshape,
    "rsqrt": lambda x, epsilon: 1 / np.sqrt(x + epsilon),
    "scaled_dot_product_attention": _attention,
    "select": lambda cond, a, b: np.where(cond, a, b),
    "shape": lambda x: np.array(x.shape, np.int32),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "slice_by_index": _slice_by_index,
    "slice_update": _slice_update,
    "softmax": _softmax,
    "split": _split,
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
    "sub": lambda x, y: x - y,
    "tanh": lambda x: np.tanh(x),
    "topk": _topk,
    "transpose": lambda x, perm: x.transpose(perm),
}
