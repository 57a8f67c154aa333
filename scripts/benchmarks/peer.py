"""The peer: the converter in llama-cpp-python's source archive, and its quantiser through the bindings."""

from __future__ import annotations

import sys
from pathlib import Path

from llama_cpp_source import llama_cpp_source

CONVERTER = "convert_hf_to_gguf.py"


def find_converter(given: Path | None) -> Path:
    """The converter script: below `given`, or in the archive of the installed version, which is fetched once.

    `given` is an unpacked source archive or a llama.cpp checkout.
    """
    if given is None:
        return llama_cpp_source() / CONVERTER
    for path in (given / CONVERTER, given / "vendor" / "llama.cpp" / CONVERTER):
        if path.is_file():
            return path
    raise SystemExit(f"{given}: found neither {CONVERTER} nor vendor/llama.cpp/{CONVERTER}")


def convert_command(converter: Path, checkpoint: Path, output: Path, outtype: str) -> list[str | Path]:
    """What a user of the peer types for its first step."""
    return [sys.executable, converter, checkpoint, "--outtype", outtype, "--outfile", output]


def quantize_command(source: Path, output: Path, file_type: int, threads: int) -> list[str | Path]:
    """The peer's second step; prints the seconds of the call itself, without Python's start."""
    return [sys.executable, Path(__file__).with_name("llama_quantize.py"), source, output, str(file_type), str(threads)]
