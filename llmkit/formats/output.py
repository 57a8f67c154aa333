"""Output files that appear under their final name only when they are complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmkit.errors import OutputError


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError at once if `path` could not be created or replaced later."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file with -o")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; use --overwrite to replace it, or -o for another name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {folder}")


@contextmanager
def publish(path: Path, total_bytes: int, *, overwrite: bool) -> Iterator[int]:
    """Give a file descriptor of `total_bytes` to fill; at the end the file takes the name `path`.

    Until then it is `<path>.part` beside it. Space is reserved first, so a full disk is found before the work. An error
    or an interrupt removes the part; a part that a killed process left behind is reused. Raises OutputError.
    """
    check_output(path, overwrite=overwrite)
    part = path.with_name(path.name + ".part")
    descriptor = _open_part(part)
    try:
        try:
            os.ftruncate(descriptor, 0)
            _reserve(descriptor, total_bytes)
            yield descriptor
            os.fsync(descriptor)
            _take_name(part, path, overwrite)
        except OSError as error:
            raise OutputError(_explain(path, total_bytes, error)) from error
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    finally:
        os.close(descriptor)


def _open_part(part: Path) -> int:
    import fcntl

    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise OutputError(f"{part}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OutputError(f"{part}: another process is writing this file now") from error
    except OSError:
        pass  # a file system without locks: two writers at once are then the user's to avoid
    return descriptor


def _reserve(descriptor: int, total_bytes: int) -> None:
    """Reserve the space on disk where the file system can; set the length in any case."""
    if hasattr(os, "posix_fallocate") and total_bytes:
        try:
            os.posix_fallocate(descriptor, 0, total_bytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(descriptor, total_bytes)


def _take_name(part: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        part.replace(path)
        return
    try:
        os.link(part, path)  # unlike a rename, never replaces a file that appeared meanwhile
    except FileExistsError as error:
        raise OutputError(f"{path}: was created by someone else meanwhile; use --overwrite to replace it") from error
    except OSError:
        if path.exists():
            raise OutputError(f"{path}: was created by someone else meanwhile") from None
        part.rename(path)  # a file system without hard links
    else:
        part.unlink()


def _explain(path: Path, total_bytes: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = "unknown"
        with suppress(OSError):
            stat = os.statvfs(path.parent)
            free = f"{stat.f_bavail * stat.f_frsize:,}"
        return f"{path}: no space left on the disk: {total_bytes:,} bytes are needed, {free} are free"
    if error.errno == errno.EFBIG:
        return f"{path}: {total_bytes:,} bytes are more than the file system or the limit of the process allows"
    return f"{path}: cannot be written: {error.strerror or error}"
