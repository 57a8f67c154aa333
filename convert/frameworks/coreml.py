"""Core ML: the entry, which imports coremltools without what it says while that happens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from llmkit.convert.frameworks.base import Built, Workshop
from llmkit.formats.silence import quietly


def build(shop: Workshop) -> Built:
    """Make the package; see `llmkit.convert.frameworks.coreml_model`."""
    with _without_remarks():
        from llmkit.convert.frameworks.coreml_model import build_package

        return build_package(shop)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Without remarks: that there is no Core ML on this system, which torch, not used here, was tested, and others."""
    logger = logging.getLogger("coremltools")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quietly():
            yield
    finally:
        logger.setLevel(before)
