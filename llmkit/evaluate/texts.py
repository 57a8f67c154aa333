"""Texts to evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llmkit.errors import EvaluationError, FormatError
from llmkit.formats.files import open_regular, read_exactly

PYTHON_DOCS: Final = "pydoc_data.topics"
_MAX_BYTES: Final = 1 << 30


def python_docs() -> str:
    """Technical English that every Python has: the help texts of the standard library, in the order of their names."""
    from pydoc_data.topics import topics

    return " ".join(topics[key] for key in sorted(topics))


def read_text(path: Path) -> str:
    """The UTF-8 text in a file. Raises FormatError, and EvaluationError for one without text."""
    file, size = open_regular(path)
    with file:
        if size > _MAX_BYTES:
            raise FormatError(path, f"has {size:,} bytes; the text may have {_MAX_BYTES:,}")
        raw = read_exactly(file, size, path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text: byte {raw[error.start]:#04x} at {error.start:,}; save it as UTF-8"
        raise FormatError(path, problem) from None
    if not text.strip():
        raise EvaluationError(f"{path}: the text is empty")
    return text
