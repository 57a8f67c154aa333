"""CUDA for ONNX Runtime: its libraries, which pip's packages keep where the linker does not look."""

from __future__ import annotations

from functools import cache

from llmkit.formats.silence import silence


@cache
def load_cuda_libraries() -> bool:
    """Load those that this ONNX Runtime needs, if it is built for CUDA; whether it is."""
    try:
        import onnxruntime
    except ImportError:
        return False
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    with silence():  # it prints what it does not find; the provider then says what it lacks
        onnxruntime.preload_dlls()
    return True
