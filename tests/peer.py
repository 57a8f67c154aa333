"""llama.cpp as the judge: its quantiser through the installed llama-cpp-python."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from llmkit.quantize.recipes import TypeOptions


def silence() -> None:
    """Drop llama.cpp's log lines."""
    llama_cpp.llama_log_set(_DROP, ctypes.c_void_p(0))


@llama_cpp.llama_log_callback
def _DROP(level: int, text: bytes, data: object) -> None: ...


def quantize(
    source: Path,
    target: Path,
    file_type: int,
    *,
    threads: int = 2,
    options: TypeOptions | None = None,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    overrides: Mapping[str, int | str] | None = None,
    allow_requantize: bool = False,
) -> None:
    """llama-quantize `source` to `target`; `file_type` is ggml's number of the recipe.

    importance: by tensor name, as many values as the tensor has columns in all its experts. overrides: metadata to set,
    by which llama-quantize writes down the importance matrix it used.
    """
    silence()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = threads
    params.allow_requantize = allow_requantize
    keep_alive = [
        set_options(params, options or TypeOptions()),
        _set_importance(params, importance or {}),
        _set_overrides(params, overrides or {}),
    ]
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    del keep_alive
    assert status == 0, f"llama_model_quantize returned {status}"


def set_options(params: llama_cpp.llama_model_quantize_params, options: TypeOptions) -> Any:
    """Write `options` to llama.cpp's parameters; the result must live as long as they are used."""
    params.pure = options.pure
    if options.output_type is not None:
        params.output_tensor_type = options.output_type
    if options.token_embedding_type is not None:
        params.token_embedding_type = options.token_embedding_type
    if not options.tensor_types:
        return None
    override = llama_cpp.llama_model_tensor_override
    # llama-quantize itself puts the patterns in lower case before it passes them on; the list ends with no pattern.
    entries = [override(pattern.pattern.lower().encode(), type) for pattern, type in options.tensor_types]
    params.tt_overrides = array = (override * (len(entries) + 1))(*entries)
    return array


def _set_importance(
    params: llama_cpp.llama_model_quantize_params, importance: Mapping[str, NDArray[np.float32]]
) -> Any:
    if not importance:
        return None
    entry = llama_cpp.llama_model_imatrix_data
    floats = ctypes.POINTER(ctypes.c_float)
    values = {name.encode(): np.ascontiguousarray(array, np.float32) for name, array in importance.items()}
    entries = [entry(name, array.ctypes.data_as(floats), array.size) for name, array in values.items()]
    params.imatrix = array = (entry * (len(entries) + 1))(*entries)
    return values, array


def _set_overrides(params: llama_cpp.llama_model_quantize_params, overrides: Mapping[str, int | str]) -> Any:
    if not overrides:
        return None
    override = llama_cpp.llama_model_kv_override
    array = (override * (len(overrides) + 1))()
    for item, (key, value) in zip(array, overrides.items(), strict=False):
        item.key = key.encode()
        if isinstance(value, int):
            item.tag, item.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            item.tag, item.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    params.kv_overrides = array
    return array
