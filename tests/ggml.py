"""ggml's own encoders and decoders, from the installed llama-cpp-python, through ctypes: the judge of exactness."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.types import BLOCK_LAYOUTS, TensorType

_Decoder = Callable[[int, int, int], None]
_DECODER: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """The beginning of `struct ggml_type_traits` (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


@cache
def library() -> ctypes.CDLL:
    """The base library that llama-cpp-python installs; it needs none of the others."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the exactness tests need llama-cpp-python")
    found = sorted((Path(spec.origin).parent / "lib").glob("*ggml-base*.so")) or sorted(
        (Path(spec.origin).parent / "lib").glob("*ggml-base*")
    )
    base = ctypes.CDLL(str(found[0]))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    base.ggml_row_size.restype = ctypes.c_size_t
    base.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    base.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    base.ggml_get_type_traits.argtypes = [ctypes.c_int]
    base.ggml_version.restype = ctypes.c_char_p
    base.ggml_commit.restype = ctypes.c_char_p
    return base


def build() -> str:
    """Which ggml this is, for notes in golden files."""
    base = library()
    return (
        f"llama-cpp-python {version('llama-cpp-python')}, "
        f"ggml {base.ggml_version().decode()} commit {base.ggml_commit().decode()}"
    )


def quantize(
    type: TensorType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """ggml_quantize_chunk: float32 [n, columns] and perhaps the importance [columns] -> uint8 [n, row_bytes]."""
    base = library()
    rows = np.ascontiguousarray(rows, np.float32)
    n_rows, columns = rows.shape
    weights = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        assert importance.shape == (columns,)
        weights = importance.ctypes.data
    out = np.zeros((n_rows, base.ggml_row_size(int(type), columns)), np.uint8)
    written = base.ggml_quantize_chunk(int(type), rows.ctypes.data, out.ctypes.data, 0, n_rows, columns, weights)
    if written != out.nbytes:
        raise AssertionError(f"ggml wrote {written} bytes of {type.name}, expected {out.nbytes}")
    return out


@cache
def decoder(type: TensorType) -> _Decoder | None:
    """ggml's function decoder(packed address, weights address, number of weights) of a type; None if it has none."""
    base = library()
    traits = base.ggml_get_type_traits(int(type)).contents
    assert (traits.block_size, traits.type_size) == BLOCK_LAYOUTS[type]
    if traits.to_float:
        return _DECODER(traits.to_float)
    if type is TensorType.Q8_K:
        # Not in the table, since ggml never decodes it itself, but exported all the same.
        return _DECODER(("dequantize_row_q8_K", base))
    return None


def decode(type: TensorType, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Encoded rows uint8 [n, row_bytes] -> float32 [n, columns]."""
    run, layout = decoder(type), BLOCK_LAYOUTS[type]
    assert run is not None, f"ggml does not decode {type.name}"
    packed = np.ascontiguousarray(packed)
    out = np.empty((len(packed), packed.shape[1] // layout.block_bytes * layout.block_size), np.float32)
    run(packed.ctypes.data, out.ctypes.data, out.size)
    return out
