"""Opening and describing files that strangers made."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from llmkit.errors import FormatError

_LFS_POINTER: Final = b"version https://git-lfs"


def open_regular(path: Path) -> tuple[BinaryIO, int]:
    """Open the regular file `path` for reading, unbuffered; returns it and its size in bytes.

    Raises FormatError when the file is missing, unreadable, or not a regular file (opening a pipe would wait
    for its writer).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FormatError(path, "not a regular file")
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise FormatError(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise FormatError(path, f"cannot be read: {error}") from error
    return file, os.fstat(file.fileno()).st_size


def user_path(text: str) -> Path:
    """The path a person means by `text`: `~` is the home folder; `~name` of no known user stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def read_exactly(file: BinaryIO, n_bytes: int, path: Path) -> bytes:
    """The next `n_bytes` of `file`; FormatError if fewer are there or the disk fails."""
    parts: list[bytes] = []
    remaining = n_bytes
    try:
        while remaining and (part := file.read(remaining)):
            parts.append(part)
            remaining -= len(part)
    except OSError as error:
        raise FormatError(path, f"cannot be read: {error.strerror or error}") from error
    if remaining:
        raise FormatError(path, f"ends {remaining:,} bytes too early")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_text(path: Path, most: int, advice: str = "") -> str:
    """The UTF-8 text in a file of at most `most` bytes; FormatError otherwise, with `advice` on sizes."""
    file, size = open_regular(path)
    with file:
        if size > most:
            raise FormatError(path, f"has {size:,} bytes; the text may have {most:,}{advice}")
        raw = read_exactly(file, size, path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text: byte {raw[error.start]:#04x} at {error.start:,}; save it as UTF-8"
        raise FormatError(path, problem) from None


def foreign_content(head: bytes) -> str | None:
    """What a file holds instead of weights, judged by its first bytes; None if they say nothing."""
    if head.startswith(_LFS_POINTER):
        return "this is a Git LFS pointer, not the file itself; run `git lfs pull` in that folder"
    if head.startswith((b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML")):
        return "this is a web page, not a model file; download it again"
    if head.startswith(b"PK\x03\x04"):
        return "this is a zip archive (PyTorch checkpoints are), not a model file of this format"
    return None
