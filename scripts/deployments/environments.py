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
# With these a target has more in it: TensorRT's folder an engine.
_BESIDES: Final = {"tensorrt": "tensorrt"}


@dataclass(frozen=True, slots=True)
class Environment:
    """An interpreter with llmkit and one extra; installed: bytes on disk."""

    python: Path
    extras: tuple[str, ...]
    installed: int


def extras_of(target: str) -> tuple[str, ...]:
    """What a target takes to be written and run; SystemExit if there is no such target."""
    if find_framework_target(target) is None:
        raise SystemExit(f"{target} is no deployment format with an environment of its own")
    format = formats_by_target()[container_of(target)]
    return tuple(dict.fromkeys(filter(None, (format.write_extra, format.run_extra, _BESIDES.get(target)))))


@contextmanager
def environment(extras: tuple[str, ...], *, remove: bool) -> Iterator[Environment]:
    """The environment with these extras, made if it is not there yet."""
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
        options = ["--quiet", "--disable-pip-version-check"]
        environ = {**os.environ, "PIP_CONSTRAINT": str(constraints)}
        environ.pop("PYTHONPATH", None)
        command = [str(python), "-m", "pip", "install", *options, "-e", f"{REPOSITORY}[{','.join(extras)}]"]
        subprocess.run(command, check=True, env=environ, stdout=sys.stderr)
        done.touch()
    try:
        yield Environment(python, extras, _size(folder))
    finally:
        if remove:
            shutil.rmtree(folder)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
