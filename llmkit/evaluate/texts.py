"""Texts to evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llmkit.errors import EvaluationError
from llmkit.formats import files

PYTHON_DOCS: Final = "pydoc_data.topics"
_MAX_BYTES: Final = 1 << 30


def python_docs() -> str:
    """Technical English that every Python has: the help texts of the standard library, in the order of their names."""
    from pydoc_data.topics import topics

    return " ".join(topics[key] for key in sorted(topics))


def read_text(path: Path) -> str:
    """The UTF-8 text in a file. Raises FormatError, and EvaluationError for one without text."""
    text = files.read_text(path, _MAX_BYTES)
    if not text.strip():
        raise EvaluationError(f"{path}: the text is empty")
    return text
