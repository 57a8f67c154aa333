"""Settings for the tests of the runtimes."""

from __future__ import annotations

import sys


def pytest_unconfigure() -> None:
    """Close the two files on /dev/null that llama_cpp leaves open: each would be reported as an error at the end."""
    utils = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if utils is not None and hasattr(utils, name):
            getattr(utils, name).close()
