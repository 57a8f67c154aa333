"""Other projects' code kept from printing, where it cannot be asked to."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence() -> Iterator[None]:
    """What is written to standard output and error goes nowhere, by native code, too, and by every thread.

    Commands print results to standard output, which must hold nothing else. Errors come as exceptions.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    kept = {target: os.dup(target) for target in (1, 2)}
    for target in kept:
        os.dup2(nowhere, target)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, copy in kept.items():
            os.dup2(copy, target)
            os.close(copy)
        os.close(nowhere)


@contextmanager
def quietly() -> Iterator[None]:
    """Without Python's warnings: of what is deprecated, experimental, or no concern here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
