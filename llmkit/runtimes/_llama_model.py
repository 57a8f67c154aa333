"""Loading a model file with llama.cpp, and what its metadata says."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from llmkit.errors import DependencyError, EngineError
from llmkit.formats.gguf import open_gguf
from llmkit.runtimes import _llama_log
from llmkit.runtimes._interrupt import InterruptFlag, deferred_interrupt
from llmkit.runtimes._machine import physical_memory

TEMPLATE_KEY = "tokenizer.chat_template"


def bindings() -> ModuleType:
    """The module `llama_cpp.llama_cpp` with its log caught; DependencyError if it is not installed."""
    # llama.cpp's threads meet after every graph node. GNU OpenMP lets them spin there for milliseconds, so any other
    # busy program makes decoding many times slower; asleep at once they decode small models at a third of the speed.
    # It counts if OpenMP is not loaded yet. Source: libgomp's manual, GOMP_SPINCOUNT (default 300,000).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        import llama_cpp.llama_cpp as lib
    except ImportError as error:
        raise DependencyError("llama-cpp-python", "llama", "running a GGUF file") from error
    except (OSError, RuntimeError) as error:  # installed, but its shared library cannot be loaded
        raise EngineError(
            f"llama-cpp-python is installed but does not load: {error}. Reinstalling it builds it for this machine: "
            "pip install --force-reinstall --no-cache-dir llama-cpp-python"
        ) from error
    _llama_log.install(lib)
    lib.llama_backend_init()
    module: ModuleType = lib
    return module


def engine() -> str:
    """Name and version of the engine, such as "llama.cpp (llama-cpp-python 0.3.36)"."""
    import llama_cpp

    return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"


def check_file(path: Path, n_context: int | None = None) -> None:
    """Read the file's header strictly: llama.cpp ends the process on some damaged files, and beyond learned positions.

    Raises FormatError for those, EngineError for a GGUF file that is no model, or has no embeddings for so many
    positions.
    """
    with open_gguf(path) as file:
        positions = file.tensors.get("position_embd.weight")
        if positions is not None and n_context is not None and n_context > positions.shape[0]:
            raise EngineError(
                f"{path}: has embeddings for {positions.shape[0]} positions: a context of {n_context} is too large "
                "(--context, n_context)"
            )
        if file.get("general.type") == "imatrix":
            raise EngineError(f"{path}: an importance matrix, not a model; it helps to quantise one (--imatrix)")


def load_model(lib: Any, path: Path) -> Any:
    """llama.cpp's model for the file, weights memory-mapped; EngineError with llama.cpp's reason if it refuses."""
    _llama_log.clear()
    flag = InterruptFlag()
    params = lib.llama_model_default_params()
    params.progress_callback = lib.llama_progress_callback(lambda _progress, _data: not flag.is_set)
    model = None
    try:
        with deferred_interrupt(flag):
            model = lib.llama_model_load_from_file(os.fsencode(path), params)
    except KeyboardInterrupt:
        if model:
            lib.llama_model_free(model)
        raise
    if not model:
        raise EngineError(f"{path}: llama.cpp cannot load this file: {_llama_log.last_errors() or 'no reason given'}")
    if lib.llama_model_has_encoder(model) or not lib.llama_model_has_decoder(model):
        lib.llama_model_free(model)
        raise EngineError(
            f"{path}: a model of T5's kind, which llmkit does not run: it runs decoders, and encoders such as BERT for "
            "embeddings"
        )
    return model


def metadata(lib: Any, model: Any) -> dict[str, str]:
    """The file's scalar metadata as text (llama.cpp shortens arrays)."""
    found = {}
    for index in range(lib.llama_model_meta_count(model)):
        key = _read(lib.llama_model_meta_key_by_index, model, index)
        found[key] = _read(lib.llama_model_meta_val_str_by_index, model, index)
    return found


def _read(get: Any, model: Any, index: int) -> str:
    room = 256
    for _ in range(2):
        buffer = ctypes.create_string_buffer(room)
        length: int = get(model, index, buffer, room)
        if length < room:
            break
        room = length + 1
    return buffer.value.decode("utf-8", "replace")


def chat_templates(values: dict[str, str]) -> dict[str, str]:
    """The file's chat templates by name; the unnamed one is called "default"."""
    templates = {}
    if values.get(TEMPLATE_KEY):
        templates["default"] = values[TEMPLATE_KEY]
    for key, source in values.items():
        if key.startswith(TEMPLATE_KEY + ".") and source:
            templates[key.removeprefix(TEMPLATE_KEY + ".")] = source
    return templates


def description(lib: Any, model: Any) -> str:
    """llama.cpp's summary of the model, such as "llama 135M Q4_1"."""
    buffer = ctypes.create_string_buffer(256)
    lib.llama_model_desc(model, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def check_cache_fits(
    lib: Any, model: Any, values: dict[str, str], n_context: int, full_precision: bool = False
) -> None:
    """EngineError if the KV cache alone is larger than the machine's memory.

    llama.cpp fills the cache with zeros at the start, so the system would end the process instead of refusing. The
    size is n_layer x n_context x n_head_kv x (key length + value length) x 2 bytes (float16), or 4 in full precision.
    """
    memory = physical_memory()
    if memory is None or lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
        return
    head = lib.llama_model_n_embd(model) // max(1, lib.llama_model_n_head(model))
    architecture = values.get("general.architecture", "")
    lengths = sum(_number(values.get(f"{architecture}.attention.{kind}_length"), head) for kind in ("key", "value"))
    needed = lib.llama_model_n_layer(model) * n_context * lib.llama_model_n_head_kv(model) * lengths
    needed *= 4 if full_precision else 2
    if needed > memory:
        raise EngineError(
            f"a context of {n_context} tokens needs {needed / 1e9:.1f} GB for the KV cache, and this machine has "
            f"{memory / 1e9:.1f} GB of memory: ask for a smaller context (--context, n_context)"
        )


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and text.isdecimal() else otherwise
