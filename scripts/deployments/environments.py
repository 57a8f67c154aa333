"""One virtual environment for each extra."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmkit.convert.frameworks.registry import find_framework_target
from llmkit.deploymentformats import container_of, formats_by_target

REPOSITORY: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = REPOSITORY / "build" / "formats"
# Without it pip takes the build for CUDA, of several gigabytes.
_CONSTRAINTS: Final = "torch==2.13.0\n"


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter with llmkit and one extra; installed: bytes on disk."""

    python: Path
    extras: tuple[str, ...]
    installed: int


@contextmanager
def environment(target: str, *, remove: bool) -> Iterator[Environment]:
    """The environment for a target, made if it is not there yet."""
    found = find_framework_target(target)
    assert found is not None, f"{target} is no deployment format with an environment of its own"
    format = formats_by_target()[container_of(target)]
    extras = tuple(dict.fromkeys(filter(None, (format.write_extra, format.run_extra))))
    folder = FOLDER / "-".join(extras)
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"installing llmkit[{','.join(extras)}] ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        constraints = FOLDER / "constraints.txt"
        constraints.write_text(_CONSTRAINTS)
        shutil.rmtree(REPOSITORY / "build" / "lib", ignore_errors=True)  # setuptools would pack modules that are gone
        options = ["--quiet", "--disable-pip-version-check"]
        environ = {**os.environ, "PIP_CONSTRAINT": str(constraints)}
        environ.pop("PYTHONPATH", None)
        command = [str(python), "-m", "pip", "install", *options, f"{REPOSITORY}[{','.join(extras)}]"]
        subprocess.run(command, check=True, env=environ, stdout=sys.stderr)
        done.touch()
    try:
        yield Environment(python, extras, _size(folder))
    finally:
        if remove:
            shutil.rmtree(folder)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
