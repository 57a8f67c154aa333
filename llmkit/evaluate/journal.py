"""A file that keeps results as they come, so that work which was interrupted goes on where it stopped.

Lines of JSON: a first one that says what the file is, then one for each result, under a key that is a digest of all
that the result depends on: what was asked, of which model, with which settings. What is found under its key need not be
computed again; anything else that changes makes another key. A line that was cut short by a crash is dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from llmkit.errors import EvaluationError, FormatError, OutputError
from llmkit.formats.checkpointfiles import whole_set
from llmkit.formats.strictjson import parse_json
from llmkit.protocols import Session

_HEADER: Final = {"format": "llmkit journal", "version": 1}
_MAX_BYTES: Final = 8 << 30
_MAX_LINE: Final = 64 << 20
# In a folder: weights, graphs, settings, tokenizers. Other files, such as a journal, come and go.
_MODEL_FILES: Final = (".safetensors", ".bin", ".onnx", ".data", ".json", ".model", ".txt", ".jinja")


class Journal:
    """Results by key; use it as a context manager. Without a path it keeps nothing."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        """Open the file, or begin one.

        Raises FormatError for a file that is something else, OutputError if it cannot be written, EvaluationError if
        another process has it.
        """
        self._results: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        if path is not None:
            self._path = Path(path)
            self._file = _opened(self._path)
            try:
                self._read(self._file)
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            with suppress(OSError):  # each result was written out; what could not be was said then
                self._file.close()

    @property
    def is_kept(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def about(self, **facts: Any) -> Section:
        """The results that depend on these facts, which are plain values, besides what their keys say."""
        return Section(self, facts)

    def get(self, key: str) -> Any:
        """The result, None if there is none."""
        return self._results.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a result, a plain value. Raises OutputError if the file cannot be written."""
        if self._file is None:
            return
        self._results[key] = value
        self._append({"key": key, "value": value})

    def _read(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_BYTES:
            raise FormatError(self._path, f"has {size:,} bytes; a journal may have {_MAX_BYTES:,}")
        if not size:
            self._append(_HEADER)
            return
        file.seek(0)
        end = 0
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b"")):
            whole = line.endswith(b"\n")
            if number == 0:
                self._check_header(line)
            elif whole:
                self._take(line, number)
            elif len(line) == _MAX_LINE:
                raise FormatError(self._path, f"line {number + 1} has more than {_MAX_LINE:,} bytes")
            if not whole:
                break
            end += len(line)
        if end < size:  # the line that a crash cut short
            file.truncate(end)
        file.seek(0, os.SEEK_END)
        if not end:
            self._append(_HEADER)

    def _check_header(self, line: bytes) -> None:
        try:
            found = parse_json(line, self._path)
        except FormatError:
            found = None
        if found != _HEADER:
            raise FormatError(
                self._path, "is no journal of this version of llmkit; --resume (resume) needs one, or a name of its own"
            )

    def _take(self, line: bytes, number: int) -> None:
        record = parse_json(line, self._path, what=f"line {number + 1}", allow_nonfinite=True)
        if not isinstance(record, dict) or not isinstance(record.get("key"), str) or "value" not in record:
            raise FormatError(self._path, f"line {number + 1} holds no key and value")
        self._results[record["key"]] = record["value"]

    def _append(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror or error}") from error


class Section:
    """The results of a journal that depend on certain facts."""

    def __init__(self, journal: Journal, facts: dict[str, Any]) -> None:
        self._journal = journal
        self._facts = facts

    def about(self, **facts: Any) -> Section:
        """A part of it, with further facts."""
        return Section(self._journal, self._facts | facts)

    def get(self, *key: Any) -> Any:
        """The result under a key of plain values, None if there is none."""
        return self._journal.get(self._digest(key))

    def put(self, *key: Any, value: Any) -> None:
        """Keep a result, a plain value. Raises OutputError."""
        self._journal.put(self._digest(key), value)

    def _digest(self, key: tuple[Any, ...]) -> str:
        text = json.dumps([self._facts, key], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


NOTHING: Final = Journal(None).about()


@contextmanager
def journal(resume: str | os.PathLike[str] | Journal | None) -> Iterator[Journal]:
    """The journal that is open already, or that of a path, or one that keeps nothing."""
    if isinstance(resume, Journal):
        yield resume
        return
    with Journal(resume) as opened:
        yield opened


def _opened(path: Path) -> BinaryIO:
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: is no file that results can be kept in")
        file = path.open("a+b")  # appending, so that nothing that is there can be lost
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise EvaluationError(f"{path}: another process keeps its results there") from error
    return file


def facts_of_session(session: Session) -> list[Any]:
    """What tells an open model from another. Raises EvaluationError for one that does not come from a file."""
    extra = session.info.extra
    if "path" not in extra:
        raise EvaluationError(f"{session.info.name}: comes from no file, so its results cannot be kept (resume)")
    how = {name: extra[name] for name in ("dtype", "device", "attention") if name in extra}
    return [session.info.engine, how, facts_of(Path(extra["path"]))]


def facts_of(path: Path) -> list[list[Any]]:
    """What tells a model on disk from another: names, sizes and times of the files that make it.

    Raises FormatError if one cannot be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(_MODEL_FILES) and file.is_file())
    else:
        files = whole_set(path)
    found = []
    for file in files:
        try:
            state = file.stat()
        except OSError as error:
            raise FormatError(file, f"cannot be read: {error.strerror or error}") from error
        found.append([str(file.resolve()), state.st_size, state.st_mtime_ns])
    return found
