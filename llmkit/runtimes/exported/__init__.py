"""Runs folders of deployment formats (`llmkit convert --to torch` and so on): one small engine file for each format.

Tokens are those of the folder's tokenizer.json, and the next token is chosen here, as with ONNX Runtime GenAI; an
engine computes logits and keeps a cache.
"""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Final

from llmkit.errors import EngineError, UnsupportedError
from llmkit.formats.chattemplates import read_chat_templates
from llmkit.formats.exported import ExportedModel, read_exported
from llmkit.protocols import SessionInfo
from llmkit.runtimes._hf_vocabulary import HfVocabulary
from llmkit.runtimes._machine import default_threads
from llmkit.runtimes._options import check_counts
from llmkit.runtimes._session import GraphSession
from llmkit.runtimes.exported.context import EngineContext
from llmkit.runtimes.exported.engine import Engine

# The module here that runs a format; has `open_engine(model, n_threads, device)`.
ENGINES: Final = {
    "torch": "torch_engine",
    "torchscript": "torch_engine",
    "openvino": "openvino_engine",
    "onnx-standard": "ort_engine",
    "stablehlo": "jax_engine",
    "iree": "iree_engine",
    "litert": "litert_engine",
    "savedmodel": "tensorflow_engine",
    "executorch": "executorch_engine",
}
# Where they can be run other than on the CPU.
DEVICES: Final = dict.fromkeys(("torch", "stablehlo", "onnx-standard"), ("auto", "cpu", "cuda"))


def load(
    path: str | Path,
    *,
    n_context: int | None = None,
    n_threads: int | None = None,
    template: str | None = None,
    device: str = "auto",
) -> ExportedSession:
    """Load the folder at `path`, which has an llmkit.json.

    `n_context`: the most tokens of prompt and answer; by default the length of the model's cache, which it cannot
    exceed. `n_threads`: by default the physical cores this process may use. `template`: which chat template to use, as
    `llmkit.template.choose_template` explains. `device`: "cpu"; "cuda" where `DEVICES` has it; or "auto", which takes
    CUDA where the format's engine has it and there is a GPU; `info.extra["device"]` says what was taken.

    Raises FormatError for a damaged folder, UnsupportedError for a format that does not run here, EngineError if its
    engine cannot load it, DependencyError if that is not installed.
    """
    check_counts(n_context=n_context, n_threads=n_threads)
    started = time.perf_counter()
    model = read_exported(Path(path))
    devices = DEVICES.get(model.format, ("auto", "cpu"))
    if device not in devices:
        raise EngineError(f"device is {device!r}: {model.format} models take {', '.join(devices)}")
    if n_context is not None and n_context > model.n_context:
        raise EngineError(
            f"{path}: a context of {n_context:,} is too large: its cache was made for {model.n_context:,} tokens "
            "(llmkit convert --context)"
        )
    vocabulary = HfVocabulary(model.path, n_tokens=model.n_vocab, ends=model.ends)
    n_threads = n_threads or default_threads()
    engine = _open(model, n_threads, device)
    templates = read_chat_templates(model.path, vocabulary.config)
    n_context = n_context or model.n_context
    info = SessionInfo(
        name=model.path.resolve().name,
        engine=engine.name,
        architecture=model.architecture,
        n_params=model.n_params,
        n_vocab=model.n_vocab,
        n_context=n_context,
        n_threads=n_threads,
        load_seconds=time.perf_counter() - started,
        bos=vocabulary.bos,
        eos=vocabulary.eos,
        extra={
            "path": str(path),
            "trained_context": str(model.values.get("trained_context", model.n_context)),
            "templates": ", ".join(templates),
            "device": engine.device,
        },
    )
    context = EngineContext(engine, n_context, model.tokens_at_once)
    return ExportedSession(vocabulary, context, info, templates=templates, template=template)


class ExportedSession(GraphSession):
    """A model of a deployment format; implements `llmkit.protocols.Session`. `load` makes one."""


def _open(model: ExportedModel, n_threads: int, device: str) -> Engine:
    name = ENGINES.get(model.format)
    if name is None:
        raise UnsupportedError(f"{model.path}: llmkit does not run {model.format!r:.40}; it does {', '.join(ENGINES)}")
    engine: Engine = import_module(f"llmkit.runtimes.exported.{name}").open_engine(model, n_threads, device)
    return engine
