"""One adapter per engine; each imports its engine only inside its own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmkit.errors import UnsupportedError
from llmkit.protocols import Session


def load(path: str | Path, **options: Any) -> Session:
    """Load a model with the runtime for its kind: GGUF files run on llama.cpp (`llmkit.runtimes.llamacpp.load`)."""
    path = Path(path)
    if path.is_dir():
        raise UnsupportedError(
            f"{path} is a folder; models run from GGUF files. Convert the checkpoint first: "
            f"llmkit convert {path} --to gguf-q4"
        )
    from llmkit.runtimes import llamacpp

    return llamacpp.load(path, **options)
