"""Where compiled kernels are kept between runs.

The folder lies in `$NUMBA_CACHE_DIR`, else in `numba` under `$LLMKIT_CACHE`, else under `$XDG_CACHE_HOME/llmkit`, else
under `~/.cache/llmkit`. It is named after a hash of the sources and of the processor. The sources, since Numba notices
edits in the file of a kernel only, not in the files of the helpers it calls. The processor, since Numba writes its
index before what it points to: two machines that share a home and start at once could leave one the other's code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, Final

from numba.core import config
from numba.core.registry import cpu_target

_HERE: Final = Path(__file__).resolve().parent
# The schemes hold kernels too; they are found beside this package, installed or in the source tree.
_SOURCES: Final = (_HERE, _HERE.parent / "quantize" / "schemes")

_settings: Any = config
_settings_lock = Lock()


@contextmanager
def numba_caches_here() -> Iterator[None]:
    """Functions that are decorated with `cache=True` meanwhile are kept in the folder, or refused with RuntimeError.

    Numba's settings belong to the whole program, whose own functions go where it says, so they change for the moment
    only. Its other places, such as `__pycache__` beside the sources, would serve old code after an edit.
    """
    with _settings_lock:
        before = _settings.CACHE_DIR, _settings.CACHE_LOCATOR_CLASSES
        _settings.CACHE_DIR, _settings.CACHE_LOCATOR_CLASSES = str(_folder()), "UserProvidedCacheLocator"
        try:
            yield
        finally:
            _settings.CACHE_DIR, _settings.CACHE_LOCATOR_CLASSES = before


def _folder() -> Path:
    return _root() / _key()


def _root() -> Path:
    if root := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(root)
    if root := os.environ.get("LLMKIT_CACHE"):
        return Path(root) / "numba"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmkit" / "numba"


@cache
def _key() -> str:
    digest = blake2b(digest_size=8)
    for folder in _SOURCES:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    digest.update(repr(cpu_target.target_context.codegen().magic_tuple()).encode())
    return digest.hexdigest()
