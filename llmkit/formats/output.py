"""Output files that appear under their final name only when they are complete."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import OutputError


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError at once if `path` could not be created, or replaced, later."""
    try:
        target = _target(path)
        folder = target.parent
        if not folder.is_dir():
            raise OutputError(f"{path}: the folder {folder} does not exist")
        if target.is_dir():
            raise OutputError(f"{path}: is a folder; name a file with -o")
        if target.exists() and not target.is_file():
            raise OutputError(f"{path}: is not a regular file")
        if target.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; replace it with --overwrite (overwrite=True) or name another")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {folder}")


class OutputFile:
    """A file in the making; `publish` yields it."""

    def __init__(self, path: Path, descriptor: int, total_bytes: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._total_bytes = total_bytes

    def write_at(self, data: memoryview | bytes, offset: int) -> None:
        """Write all of `data` at `offset`; several threads may do so at once. Raises OutputError."""
        view = memoryview(data)
        try:
            while view:
                n = os.pwrite(self._descriptor, view, offset)
                view = view[n:]
                offset += n
        except OSError as error:
            raise OutputError(_explain(self._path, self._total_bytes, error)) from error

    def read_at(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with what was written at `offset`. Raises OutputError."""
        view = buffer
        while view:
            try:
                n = os.preadv(self._descriptor, [view], offset)
            except OSError as error:
                raise OutputError(f"{self._path}: cannot be read back: {error.strerror or error}") from error
            if n == 0:
                raise OutputError(f"{self._path}: ended {len(view):,} bytes too early when it was read back")
            view = view[n:]
            offset += n


@contextmanager
def publish(path: Path, total_bytes: int, *, overwrite: bool) -> Iterator[OutputFile]:
    """Give a file of `total_bytes` to fill; at the end it takes the name `path`. See `publish_all`."""
    with publish_all([(path, total_bytes)], overwrite=overwrite) as (file,):
        yield file


@contextmanager
def publish_all(files: Sequence[tuple[Path, int]], *, overwrite: bool) -> Iterator[list[OutputFile]]:
    """Give files of these lengths in bytes to fill; at the end they take their names, all or, on an error, none.

    Until then a file has no name at all where the system offers that (Linux, on most file systems), so even a kill
    leaves nothing; elsewhere it is `.<name>.<random>.part` beside its path, removed on an error or interrupt. Space is
    reserved first, so a full disk is found before the work. A symbolic link stays, and the file it leads to is written.
    Raises OutputError. (Files that were replaced before the last one could not be are not brought back.)
    """
    for path, _ in files:
        check_output(path, overwrite=overwrite)
    with ExitStack() as stack:
        parts = [stack.enter_context(_unfinished(path, total_bytes)) for path, total_bytes in files]
        yield [part.file for part in parts]
        for part in parts:
            part.complete()
        named: list[Path] = []
        try:
            for part in parts:
                part.take_name(overwrite)
                named.append(part.target)
        except BaseException:
            for target in named if not overwrite else ():
                target.unlink()
            raise


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """A file on its way to the name `target`; `part` is its name until then, once it has one."""

    path: Path
    target: Path
    part: Path
    descriptor: int
    is_named: bool
    total_bytes: int

    @property
    def file(self) -> OutputFile:
        return OutputFile(self.path, self.descriptor, self.total_bytes)

    def complete(self) -> None:
        """Bring the content to the disk."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise OutputError(_explain(self.path, self.total_bytes, error)) from error

    def take_name(self, overwrite: bool) -> None:
        """Appear as `target`, by way of `part`."""
        try:
            if not self.is_named:
                _give_name(self.descriptor, self.part)
            _take_name(self.part, self.target, overwrite)
        except OSError as error:
            raise OutputError(_explain(self.path, self.total_bytes, error)) from error


@contextmanager
def _unfinished(path: Path, total_bytes: int) -> Iterator[_Unfinished]:
    target = _target(path)
    # Short names: the random part must not make a valid name too long.
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    descriptor = -1
    try:
        try:
            descriptor, named = _open_part(part)
            _reserve(descriptor, total_bytes)
        except OSError as error:
            raise OutputError(_explain(path, total_bytes, error)) from error
        yield _Unfinished(path, target, part, descriptor, named, total_bytes)
    finally:
        with suppress(OSError):
            part.unlink()
        if descriptor >= 0:
            os.close(descriptor)


def _target(path: Path) -> Path:
    """Where `path` leads: a link, dangling or not, is followed, so that the link itself stays."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _open_part(part: Path) -> tuple[int, bool]:
    """A new file for writing, and whether it has the name `part` already."""
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(part.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666), False
        except OSError as error:
            # Not every file system has nameless files; what it answers instead varies.
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), True


def _give_name(descriptor: int, part: Path) -> None:
    # linkat follows the link that /proc keeps for an open file; Python calls linkat only with a folder's descriptor.
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.link(str(descriptor), part, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


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


def _take_name(part: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        part.replace(target)
        return
    try:
        os.link(part, target)  # unlike a rename, never replaces a file that appeared meanwhile
    except OSError as error:
        if target.exists():
            raise OutputError(
                f"{target}: was created by someone else meanwhile; use --overwrite to replace it"
            ) from error
        part.rename(target)  # a file system without hard links


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


def check_folder(path: Path, mark: str, *, overwrite: bool) -> None:
    """Raise OutputError at once if a folder `path` could not be created, or replaced, later.

    Only a folder that is empty or has a file `mark`, by which it is known as an earlier output, is replaced.
    """
    try:
        if not path.parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist")
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise OutputError(f"{path}: is no folder; name another with -o")
        if path.is_dir() and any(path.iterdir()):
            if not (path / mark).is_file():
                raise OutputError(f"{path}: is a folder with other things in it (no {mark}); name another with -o")
            if not overwrite:
                raise OutputError(
                    f"{path}: exists already; replace it with --overwrite (overwrite=True) or name another"
                )
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {path.parent}")


@contextmanager
def publish_folder(path: Path, mark: str, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to fill; at the end it takes the name `path`, and on an error or interrupt it goes.

    Until then it is `.<name>.<random>.part` beside its path, which a kill may leave there. A folder that was there is
    replaced as a whole, if `check_folder` allows that. Raises OutputError.
    """
    check_folder(path, mark, overwrite=overwrite)
    part, old = (path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.{kind}") for kind in ("part", "old"))
    try:
        try:
            part.mkdir()
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
        yield part
        try:
            if path.exists():
                path.rename(old)
            part.rename(path)
        except OSError as error:
            if old.exists():
                old.rename(path)
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
