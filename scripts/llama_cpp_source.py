"""Fetch llama.cpp's Python converter, to compare with: it lies in llama-cpp-python's source archive.

    python scripts/llama_cpp_source.py        prints the folder that holds convert_hf_to_gguf.py

The archive of the installed version comes from the package registry, once; it is unpacked under build/.
$LLAMA_CPP_SOURCE names a folder to use instead.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

BUILD = Path(__file__).resolve().parent.parent / "build"
INSIDE = Path("vendor", "llama.cpp")


def llama_cpp_source() -> Path:
    """The folder of llama.cpp's sources that belong to the installed llama-cpp-python."""
    if folder := os.environ.get("LLAMA_CPP_SOURCE"):
        return Path(folder)
    release = version("llama-cpp-python")
    target = BUILD / f"llama-cpp-python-{release}"
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".llama-cpp-source.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _fetch(release, target)
    return target / INSIDE


def _fetch(release: str, target: Path) -> None:
    work = Path(mkdtemp(dir=BUILD))
    try:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python"]
        # Without isolation pip asks the build backend that the test environment has, and builds nothing.
        subprocess.run([*pip, "--no-build-isolation", "--dest", work, f"llama-cpp-python=={release}"], check=True)
        (archive,) = work.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        (work / archive.name.removesuffix(".tar.gz")).rename(target)
    finally:
        rmtree(work)


if __name__ == "__main__":
    print(llama_cpp_source())
