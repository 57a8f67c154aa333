"""Catches what llama.cpp logs: nothing reaches the terminal, errors end up in our messages.

llama.cpp has one log function for the whole process. Lines go to the Python logger `llmkit.llamacpp` (debug level:
silent unless an application asks for it), and the latest warnings and errors are kept for error messages.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from typing import Any, Final

logger = logging.getLogger("llmkit.llamacpp")

# enum ggml_log_level (ggml.h)
_WARN: Final = 3
_ERROR: Final = 4
_CONTINUE: Final = 5

_recent: deque[tuple[int, str]] = deque(maxlen=32)
_installed: list[Any] = []  # the callback; llama.cpp keeps its address until the process ends
_level = 0
_line = ""


def install(lib: Any) -> None:
    """Route llama.cpp's log lines here; `lib` is the module `llama_cpp.llama_cpp`."""
    if not _installed:
        _installed.append(lib.llama_log_callback(_receive))
    # Importing another part of the bindings sets their own printing callback: set ours at each load.
    lib.llama_log_set(_installed[0], None)


def clear() -> None:
    """Forget the lines kept so far."""
    _recent.clear()


def last_errors(limit: int = 3) -> str:
    """The latest error lines (warnings if there are none) on one line, without the C function names."""
    worst = max((level for level, _ in _recent), default=0)
    lines: list[str] = []
    for level, text in _recent:
        text = re.sub(r"^\w+: ", "", text.strip())
        if level == worst and text and text not in lines:
            lines.append(text)
    return "; ".join(lines[-limit:])


def _receive(level: int, text: bytes | None, _data: object) -> None:
    global _level, _line
    if level != _CONTINUE:
        _level, _line = level, ""
    _line += (text or b"").decode("utf-8", "replace")
    if not _line.endswith("\n"):
        return
    line, _line = _line.rstrip(), ""
    if _level >= _WARN and _level <= _ERROR:
        _recent.append((_level, line))
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", line)
