"""One adapter per engine; each imports its engine only inside its own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkit.formats.checkpointfiles import GENAI_CONFIG, MANIFEST
from llmkit.protocols import Session


def load(path: str | Path, **options: Any) -> Session:
    """Load a model with the runtime for its kind.

    GGUF files run on llama.cpp (`llmkit.runtimes.llamacpp.load`), folders with a genai_config.json on ONNX Runtime
    GenAI (`llmkit.runtimes.ortgenai.load`), folders with an llmkit.json on the engine of their format
    (`llmkit.runtimes.exported.load`), other folders are checkpoints, for transformers (`llmkit.runtimes.torchlm.load`).
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        from llmkit.runtimes import exported

        return exported.load(path, **options)
    if (path / GENAI_CONFIG).is_file():
        from llmkit.runtimes import ortgenai

        return ortgenai.load(path, **options)
    if path.is_dir():
        from llmkit.runtimes import torchlm

        return torchlm.load(path, **options)
    from llmkit.runtimes import llamacpp

    return llamacpp.load(path, **options)
