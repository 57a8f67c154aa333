"""Runs folders of ONNX Runtime GenAI.

Tokens are those of the folder's tokenizer.json by Hugging Face's `tokenizers`, and the next token is chosen here, so
that both are the same as with the other engines; the engine computes logits and keeps the KV cache.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import DependencyError, EngineError
from llmkit.formats.chattemplates import read_chat_templates
from llmkit.formats.genai import GenaiFolder, read_genai_folder
from llmkit.protocols import SessionInfo
from llmkit.runtimes._hf_vocabulary import HfVocabulary
from llmkit.runtimes._machine import default_threads
from llmkit.runtimes._options import check_counts, choose_cuda
from llmkit.runtimes._prefix import common_prefix
from llmkit.runtimes._session import AT_ONCE, GraphSession
from llmkit.runtimes.ortcuda import load_cuda_libraries

DEFAULT_CONTEXT: Final = 4096
DEVICES: Final = ("auto", "cpu", "cuda")


def load(
    path: str | Path,
    *,
    n_context: int | None = None,
    n_threads: int | None = None,
    template: str | None = None,
    device: str = "auto",
) -> OrtSession:
    """Load the folder at `path`, which has a genai_config.json.

    `n_context`: positions of the KV cache; by default the context of the model, at most 4096. `n_threads`: by default
    the physical cores this process may use. `template`: which chat template to use, as
    `llmkit.template.choose_template` explains. `device`: "cpu", "cuda", or "auto", which takes CUDA where the package
    has it and there is a GPU; `info.extra["device"]` says what was taken.

    Raises FormatError for a damaged folder, EngineError if ONNX Runtime cannot load it or there is no such device,
    DependencyError if onnxruntime-genai is not installed.
    """
    check_counts(n_context=n_context, n_threads=n_threads)
    if device not in DEVICES:
        raise EngineError(f"device is {device!r}: expected one of {', '.join(DEVICES)}")
    started = time.perf_counter()
    folder = read_genai_folder(Path(path))
    engine = _bindings()
    chosen = _choose_device(engine, device)
    n_threads = n_threads or default_threads()
    n_context = n_context or min(folder.n_context, DEFAULT_CONTEXT)
    vocabulary = HfVocabulary(folder.path, n_tokens=folder.n_vocab, ends=folder.ends)
    context = _Context(engine, _load_model(engine, folder, chosen, n_threads), n_context, folder.n_vocab)
    templates = read_chat_templates(folder.path, vocabulary.config)
    info = SessionInfo(
        name=folder.path.resolve().name,
        engine=f"ONNX Runtime GenAI {engine.__version__}",
        architecture=folder.architecture,
        n_params=folder.model.n_weights,
        n_vocab=folder.n_vocab,
        n_context=n_context,
        n_threads=n_threads,
        load_seconds=time.perf_counter() - started,
        bos=vocabulary.bos,
        eos=vocabulary.eos,
        extra={
            "path": str(path),
            "trained_context": str(folder.n_context),
            "templates": ", ".join(templates),
            "device": chosen,
        },
    )
    return OrtSession(vocabulary, context, info, templates=templates, template=template)


class OrtSession(GraphSession):
    """A model on ONNX Runtime GenAI; implements `llmkit.protocols.Session`. `load` makes one."""


class _Context:
    """A generator of the engine, its KV cache, and the tokens that this holds."""

    def __init__(self, engine: Any, model: Any, n_context: int, n_vocab: int) -> None:
        self._engine = engine
        self._model = model
        self._n_vocab = n_vocab
        self._generator: Any = None
        self.n_context = n_context
        self.cached: list[int] = []

    @property
    def is_open(self) -> bool:
        return self._model is not None

    def close(self) -> None:
        self._generator = self._model = None

    def keep_prefix(self, ids: Sequence[int]) -> int:
        shared = min(common_prefix(self.cached, ids), len(ids) - 1)
        if self._generator is None or shared == 0:
            self._fresh()
        elif shared < len(self.cached):
            self._generator.rewind_to(shared)
            del self.cached[shared:]
        return len(self.cached)

    def feed(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), AT_ONCE):
            self._append(ids[start : start + AT_ONCE])

    def step(self, token: int) -> None:
        self._append([token])

    def latest(self) -> NDArray[np.float32]:
        """Logits after the last token, float32 [n_vocab]."""
        rows = np.asarray(self._generator.get_logits(), np.float32).reshape(-1, self._n_vocab)
        last: NDArray[np.float32] = rows[-1]
        return last

    def passes(
        self, ids: Sequence[int], skip: int, at_a_time: int | None, *, reuse: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        if not reuse:
            self._fresh()
        self.feed(ids[self.keep_prefix(ids[: skip + 1]) if reuse else 0 : skip])
        step = min(AT_ONCE, max(1, at_a_time or AT_ONCE))
        for start in range(skip, len(ids), step):
            self._append(ids[start : start + step])
            yield np.asarray(self._generator.get_output("logits")[0], np.float32)

    def _fresh(self) -> None:
        """An empty cache."""
        self.cached.clear()
        self._generator = None  # its memory goes before there is another one
        parameters = self._engine.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self.n_context, do_sample=False)
        with _engine_errors("cannot begin"):
            self._generator = self._engine.Generator(self._model, parameters)

    def _append(self, ids: Sequence[int]) -> None:
        with _engine_errors("failed"):
            self._generator.append_tokens(np.asarray(ids, np.int32))
        self.cached += ids


@contextmanager
def _engine_errors(what: str) -> Iterator[None]:
    """What the engine raises as an EngineError."""
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"ONNX Runtime {what}: {error}") from error


def _bindings() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise DependencyError("onnxruntime-genai", "ort", "running an ONNX model") from error
    return onnxruntime_genai


def _choose_device(engine: Any, device: str) -> str:
    """The device for one that was asked for. Raises EngineError if there is none."""

    def has_cuda() -> bool:
        is_built_for_it = "cuda" in getattr(engine, "__id__", "cuda")  # or ONNX Runtime is imported to ask it
        return is_built_for_it and load_cuda_libraries() and bool(engine.is_cuda_available())

    advice = "pip install 'llmkit[ort-cuda]' in an environment without onnxruntime-genai, or "
    return choose_cuda(device, has_cuda, "onnxruntime-genai", advice)


def _load_model(engine: Any, folder: GenaiFolder, device: str, n_threads: int) -> Any:
    config = engine.Config(str(folder.path))
    config.clear_providers()
    if device != "cpu":
        config.append_provider(device)
    options = {"session_options": {"intra_op_num_threads": n_threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    with _engine_errors(f"cannot load {folder.path}"):
        return engine.Model(config)
