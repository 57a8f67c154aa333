"""Sessions and settings for the tests of the runtimes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.runtimes.llamacpp import LlamaCppSession, load
from tests.runtimes import tiny_gguf


def pytest_unconfigure() -> None:
    """Close the two files on /dev/null that llama_cpp leaves open: each would be reported as an error at the end."""
    utils = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if utils is not None and hasattr(utils, name):
            getattr(utils, name).close()


@pytest.fixture(scope="module")
def session(smollm2_gguf: Path) -> Iterator[LlamaCppSession]:
    # One thread: threads that wait for each other are slow where other tests run at the same time.
    with load(smollm2_gguf, n_context=512, n_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[LlamaCppSession]:
    path = tiny_gguf.write_llama(tiny_folder / "llama.gguf", templates={"": tiny_gguf.TEMPLATE})
    with load(path, n_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def mamba(tiny_folder: Path) -> Iterator[LlamaCppSession]:
    with load(tiny_gguf.write_mamba(tiny_folder / "mamba.gguf"), n_threads=1) as opened:
        yield opened
