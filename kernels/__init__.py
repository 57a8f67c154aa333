"""Numba primitives on plain arrays; no scheme names here.

Numba's on-disk cache notices edits in the file of the compiled function only, not in the files of
functions it calls, so the cache folder is named after a hash of all kernel sources. The cache lies under
`$LLMKIT_CACHE`, else `$XDG_CACHE_HOME/llmkit`, else `~/.cache/llmkit`; `$NUMBA_CACHE_DIR` overrides all.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path


def cache_root() -> Path:
    """The folder of llmkit's own caches."""
    if root := os.environ.get("LLMKIT_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmkit"


def _source_hash() -> str:
    here = Path(__file__).resolve().parent
    digest = blake2b(digest_size=8)
    # The schemes hold njit functions too; they are found beside this package, installed or in the source tree.
    for folder in (here, here.parent / "quantize" / "schemes"):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _configure_numba_cache() -> None:
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    import numba.core.config

    numba.core.config.CACHE_DIR = str(cache_root() / "numba" / _source_hash())


_configure_numba_cache()
