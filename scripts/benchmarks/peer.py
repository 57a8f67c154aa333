"""The peer: the converter in llama-cpp-python's source archive, and its quantiser through the bindings."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

CONVERTER = "convert_hf_to_gguf.py"
PACKAGE = "llama-cpp-python"


def find_converter(given: Path | None, folder: Path) -> Path:
    """The converter script: below `given`, or of the archive, downloaded to `folder` once.

    `given` is an unpacked source archive or a llama.cpp checkout. The archive's version is that of the installed
    bindings, so that converter and quantiser are of one build.
    """
    if given is not None:
        for path in (given / CONVERTER, given / "vendor" / "llama.cpp" / CONVERTER):
            if path.is_file():
                return path
        raise SystemExit(f"{given}: found neither {CONVERTER} nor vendor/llama.cpp/{CONVERTER}")
    release = version(PACKAGE)
    unpacked = folder / f"llama_cpp_python-{release}"
    script = unpacked / "vendor" / "llama.cpp" / CONVERTER
    if not script.is_file():
        archive = _download(release, folder)
        print(f"unpacking {archive.name} ...", file=sys.stderr)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return script


def _download(release: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"llama_cpp_python-{release}.tar.gz"
    if not archive.exists():
        print(f"downloading the source archive of {PACKAGE} {release} (80 MB) ...", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
        subprocess.run([*command, "--dest", str(folder), f"{PACKAGE}=={release}"], check=True)
    return archive


def convert_command(converter: Path, checkpoint: Path, output: Path, outtype: str) -> list[str | Path]:
    """What a user of the peer types for its first step."""
    return [sys.executable, converter, checkpoint, "--outtype", outtype, "--outfile", output]


def quantize_command(source: Path, output: Path, file_type: int, threads: int) -> list[str | Path]:
    """The peer's second step; prints the seconds of the call itself, without Python's start."""
    return [sys.executable, Path(__file__).with_name("llama_quantize.py"), source, output, str(file_type), str(threads)]
