"""llama.cpp as the judge: its quantiser through the installed llama-cpp-python."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp


def silence() -> None:
    """Drop llama.cpp's log lines."""
    llama_cpp.llama_log_set(_DROP, ctypes.c_void_p(0))


@llama_cpp.llama_log_callback
def _DROP(level: int, text: bytes, data: object) -> None: ...


def quantize(source: Path, target: Path, file_type: int, *, threads: int = 2) -> None:
    """llama-quantize `source` to `target`; `file_type` is ggml's number of the recipe."""
    silence()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = threads
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0, f"llama_model_quantize returned {status}"
