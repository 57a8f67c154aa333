"""Reading the tensors of a running llama.cpp graph: `struct ggml_tensor` (ggml.h) through ctypes.

ggml has functions for a tensor's name, size and data, but none for its operation, shape, strides and sources. These
are read from the struct itself, whose layout is no promise of ggml's. `open_reader` therefore lets the loaded library
build tensors of known properties and compares what is read from them; a library with another layout is refused.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError

_MAX_DIMS: Final = 4
_MAX_SOURCES: Final = 10
_MAX_NAME: Final = 64
_OP_PARAMS: Final = 16  # int32 each

_F32: Final = 0
_I32: Final = 26
_DTYPES: Final[dict[int, type[np.generic]]] = {_F32: np.float32, _I32: np.int32}


class _Struct(ctypes.Structure):
    """`struct ggml_tensor`, up to the last field that is read."""


_Struct._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _MAX_DIMS),
    ("nb", ctypes.c_size_t * _MAX_DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * _OP_PARAMS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Struct) * _MAX_SOURCES),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _MAX_NAME),
]


class Tensor:
    """A tensor of a graph, valid while the graph is.

    op: ggml's name of the operation that makes it, such as "MUL_MAT". shape, strides (bytes): slowest dimension first,
    always four. sources: what the operation works on.
    """

    def __init__(self, struct: Any, op_names: dict[int, str]) -> None:
        self.struct = struct
        self._op_names = op_names

    @property
    def op(self) -> str:
        return self._op_names.get(self.struct.op, "")

    @property
    def name(self) -> str:
        raw: bytes = self.struct.name
        return raw.decode("utf-8", "replace")

    @property
    def type(self) -> int:
        number: int = self.struct.type
        return number

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.struct.ne)[::-1]

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.struct.nb)[::-1]

    @property
    def address(self) -> int:
        """What tells it from the other tensors of its graph."""
        return ctypes.addressof(self.struct)

    def source(self, index: int) -> Tensor:
        return Tensor(self.struct.src[index].contents, self._op_names)

    @property
    def is_float32(self) -> bool:
        return self.type == _F32


class TensorReader:
    """Makes `Tensor`s of the addresses that llama.cpp hands out, and reads their values."""

    def __init__(self, ggml: Any, op_names: dict[int, str]) -> None:
        self._ggml = ggml
        self._op_names = op_names
        self._scratch = np.empty(0, np.uint8)

    def tensor(self, address: int) -> Tensor:
        return Tensor(_Struct.from_address(address), self._op_names)

    def values(self, tensor: Tensor) -> NDArray[Any]:
        """The values of a float32 or int32 tensor, in its shape and strides, wherever they lie.

        They stand in a buffer that the next call reuses.
        """
        dtype = _DTYPES.get(tensor.type)
        if dtype is None:
            raise EngineError(f"tensor {tensor.name!r} of the graph has ggml's type {tensor.type}, expected F32 or I32")
        pointer = tensor.address
        n_bytes: int = self._ggml.ggml_nbytes(pointer)
        if n_bytes > self._scratch.size:
            self._scratch = np.empty(n_bytes, np.uint8)
        self._ggml.ggml_backend_tensor_get(pointer, self._scratch.ctypes.data, 0, n_bytes)
        flat = self._scratch[:n_bytes].view(dtype)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, tensor.strides, writeable=False)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def open_reader(lib: Any) -> TensorReader:
    """A reader for the graphs of `lib` (`llama_cpp.llama_cpp`); EngineError if its tensors are laid out otherwise."""
    ggml = _declared(lib._lib)
    context = ggml.ggml_init(_InitParams(1 << 16, None, True))
    if not context:
        raise EngineError("ggml could not set up a context")
    try:
        return TensorReader(ggml, _checked_ops(ggml, context))
    finally:
        ggml.ggml_free(context)


def _declared(ggml: Any) -> Any:
    """The library with the signatures of the functions used here: libllama leads to those of ggml as well."""
    pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_init": (pointer, [_InitParams]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_3d": (pointer, [pointer, ctypes.c_int, number, number, number]),
        "ggml_set_name": (pointer, [pointer, ctypes.c_char_p]),
        "ggml_mul_mat": (pointer, [pointer, pointer, pointer]),
        "ggml_mul_mat_id": (pointer, [pointer, pointer, pointer, pointer]),
        "ggml_nbytes": (size, [pointer]),
        "ggml_backend_tensor_get": (None, [pointer, pointer, size, size]),
    }
    try:
        for name, (result, arguments) in signatures.items():
            function = getattr(ggml, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise EngineError(f"the llama.cpp that is installed lacks a function of ggml: {error}") from error
    return ggml


def _checked_ops(ggml: Any, context: Any) -> dict[int, str]:
    """The numbers of the operations that are watched, read from tensors that ggml has just built."""
    stack = ggml.ggml_new_tensor_3d(context, _F32, 32, 5, 7)
    rows = ggml.ggml_new_tensor_3d(context, _F32, 32, 2, 11)
    ids = ggml.ggml_new_tensor_3d(context, _I32, 2, 11, 1)
    names = {stack: "a stack of matrices", rows: "rows", ids: "chosen matrices"}
    for tensor, name in names.items():
        ggml.ggml_set_name(tensor, name.encode())
    found = {
        "MUL_MAT_ID": (ggml.ggml_mul_mat_id(context, stack, rows, ids), (stack, rows, ids), (1, 11, 2, 5)),
        "MUL_MAT": (ggml.ggml_mul_mat(context, rows, rows), (rows, rows), (1, 11, 2, 2)),
    }
    ops = {}
    for op, (address, sources, shape) in found.items():
        product = Tensor(_Struct.from_address(address), {})
        steps = (4 * shape[3] * shape[2] * shape[1], 4 * shape[3] * shape[2], 4 * shape[3], 4)
        same = product.is_float32 and product.shape == shape and product.strides == steps
        for index, source in enumerate(sources):
            pointer = ctypes.cast(product.struct.src[index], ctypes.c_void_p).value
            same = same and pointer == source and product.source(index).name == names[source]
        same = same and not product.struct.src[len(sources)]
        if not same or product.struct.op in ops:
            raise EngineError(
                "llama.cpp's tensors are laid out otherwise than in the version that llmkit knows: install the one "
                "that llmkit asks for (pip install 'llmkit[llama]')"
            )
        ops[product.struct.op] = op
    return ops
