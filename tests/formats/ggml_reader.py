"""ggml's own GGUF reader, called through its C interface: the judge of what a valid file is."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class GgmlFile:
    version: int
    alignment: int
    data_offset: int
    keys: list[str]
    key_types: list[int]
    tensors: dict[str, tuple[int, int, int]]  # name -> type, absolute offset, bytes


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@cache
def _library() -> ctypes.CDLL:
    spec = find_spec("llama_cpp")
    assert spec is not None, "the tests need llama-cpp-python: pip install '.[test]'"
    (folder,) = spec.submodule_search_locations or []
    library = ctypes.CDLL(str(Path(folder) / "lib" / "libggml-base.so"))
    pointer, i64, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    library.gguf_init_from_file.restype = pointer
    library.gguf_free.argtypes = [pointer]
    for name, result in (
        ("gguf_get_version", ctypes.c_uint32),
        ("gguf_get_alignment", size),
        ("gguf_get_data_offset", size),
        ("gguf_get_n_kv", i64),
        ("gguf_get_n_tensors", i64),
    ):
        getattr(library, name).argtypes = [pointer]
        getattr(library, name).restype = result
    for name, result in (
        ("gguf_get_key", ctypes.c_char_p),
        ("gguf_get_kv_type", ctypes.c_int),
        ("gguf_get_tensor_name", ctypes.c_char_p),
        ("gguf_get_tensor_type", ctypes.c_int),
        ("gguf_get_tensor_offset", size),
        ("gguf_get_tensor_size", size),
    ):
        getattr(library, name).argtypes = [pointer, i64]
        getattr(library, name).restype = result
    return library


def read(path: Path) -> GgmlFile | None:
    """What ggml finds in `path`; None when it refuses the file."""
    ggml = _library()
    handle = ggml.gguf_init_from_file(str(path).encode(), _InitParams(no_alloc=True, ctx=None))
    if not handle:
        return None
    try:
        n_keys, n_tensors = ggml.gguf_get_n_kv(handle), ggml.gguf_get_n_tensors(handle)
        data_offset = ggml.gguf_get_data_offset(handle)
        return GgmlFile(
            ggml.gguf_get_version(handle),
            ggml.gguf_get_alignment(handle),
            data_offset,
            [ggml.gguf_get_key(handle, i).decode() for i in range(n_keys)],
            [ggml.gguf_get_kv_type(handle, i) for i in range(n_keys)],
            {
                ggml.gguf_get_tensor_name(handle, i).decode(): (
                    ggml.gguf_get_tensor_type(handle, i),
                    data_offset + ggml.gguf_get_tensor_offset(handle, i),
                    ggml.gguf_get_tensor_size(handle, i),
                )
                for i in range(n_tensors)
            },
        )
    finally:
        ggml.gguf_free(handle)
