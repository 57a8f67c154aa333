"""llama-quantize through llama-cpp-python: SOURCE TARGET FILE_TYPE THREADS; prints the seconds that the call took."""

from __future__ import annotations

import ctypes
import sys
import time

import llama_cpp


def main() -> None:
    """Quantise one GGUF file; exit status 1 if llama.cpp refuses."""
    source, target, file_type, threads = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.nthread = int(threads)
    started = time.perf_counter()
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status != 0:
        sys.exit(f"llama_model_quantize returned {status}")
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
