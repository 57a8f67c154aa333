"""The memory of a whole process that converts a mixture of experts: that of its buffers, however large a tensor is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

import llmkit

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MEBIBYTE = 1 << 20

BUDGET = 16 * MEBIBYTE
# What the interpreter, NumPy, the compiled kernels, the headers and the tokenizer take beside the buffers: some 70 MiB.
CONSTANT = 90 * MEBIBYTE
# The weights of all experts of a layer, as the checkpoint stores one of their three matrices: bf16.
STACK = 64 * 512 * 1792 * 2

pytestmark = pytest.mark.slow


def make(folder: Path, *options: str) -> Path:
    subprocess.run([sys.executable, SCRIPTS / "make_random_checkpoint.py", folder, *options], check=True)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: what is in it is large."""
    yield tmp_path
    rmtree(tmp_path)


@pytest.mark.parametrize("layout", [[], ["--joined"]], ids=["each", "joined"])
def test_a_mixture_is_converted_within_the_budget(
    layout: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    measure: Any = import_module("benchmarks.measure")
    # Compiling kernels takes memory too, once: they are in the cache after this.
    tiny = make(place / "tiny", "--shape", "mixtral-tiny", *layout)
    llmkit.convert(tiny, "gguf-q8_0", output=place / "tiny.gguf", verify=True)

    model = make(place / "model", "--shape", "mixtral-200m", "--tied", *layout)
    program = Path(sys.executable).with_name("llmkit")
    options = ("--to", "gguf-q8_0", "-o", place / "model.gguf", "--memory", str(BUDGET), "--threads", "2", "--verify")
    usage = measure.run([program, "convert", model, *options], place / "log")
    assert usage.peak_anonymous < BUDGET + CONSTANT < STACK
    assert (place / "model.gguf").stat().st_size > 3 * STACK * 34 // 64
