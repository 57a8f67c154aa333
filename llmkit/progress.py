"""Progress on stderr: a bar on a terminal, plain lines in a pipe, nothing when quiet."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # at run time it would bring NumPy into `llmkit --help`
    from llmkit.protocols import Progress


class Silent:
    """Reports nothing."""

    def start(self, title: str, total: int, unit: str = "B") -> None: ...

    def advance(self, amount: int, label: str = "") -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None: ...


class Lines:
    """A line at the start, about one every ten seconds, and one at the end: for pipes and logs."""

    interval = 10.0

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._title = ""
        self._total = 0
        self._done = 0
        self._started = self._reported = 0.0
        self._lock = Lock()  # worker threads report too

    def start(self, title: str, total: int, unit: str = "B") -> None:
        self._title, self._total, self._unit, self._done = title, total, unit, 0
        self._started = self._reported = time.monotonic()
        self._line(f"{title} ({format_amount(total, unit)})")

    def advance(self, amount: int, label: str = "") -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._reported >= self.interval:
                self._reported = now
                self._report(now - self._started, label)

    def _report(self, elapsed: float, label: str) -> None:
        share = min(1.0, self._done / max(self._total, 1))
        self._line("  ".join(filter(None, (f"{self._title}: {100 * share:.0f} %", _left(elapsed, share), label))))

    def finish(self) -> None:
        self._line(f"{self._title}: done in {time.monotonic() - self._started:.1f} s")

    def abort(self) -> None: ...

    def _line(self, text: str) -> None:
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads stderr any more: no reason to end the work
            self._stream.write(text)
            self._stream.flush()


class Bar(Lines):
    """One line that redraws itself: for terminals."""

    interval = 0.1

    def start(self, title: str, total: int, unit: str = "B") -> None:
        self._title, self._total, self._unit, self._done = title, total, unit, 0
        self._started = time.monotonic()
        self._reported = 0.0

    def _report(self, elapsed: float, label: str) -> None:
        share = min(1.0, self._done / max(self._total, 1))
        bar = ("█" * round(24 * share)).ljust(24, "·")
        speed = format_amount(int(self._done / max(elapsed, 1e-9)), self._unit)
        self._draw(f"{self._title} {bar} {100 * share:3.0f} %  {speed}/s  {_left(elapsed, share)}  {label}")

    def finish(self) -> None:
        elapsed = time.monotonic() - self._started
        self._draw(f"{self._title}: {format_amount(self._done, self._unit)} in {elapsed:.1f} s")
        self._write("\n")

    def abort(self) -> None:
        self._write("\n")

    def _draw(self, text: str) -> None:
        import shutil

        width = shutil.get_terminal_size().columns - 1
        self._write("\r\x1b[K" + text[:width])


def _left(elapsed: float, share: float) -> str:
    """The time that is left if it goes on so; nothing at the beginning, where that says little."""
    if share <= 0.02:
        return ""
    seconds = round(elapsed / share - elapsed)
    if seconds < 120:
        return f"{seconds} s left"
    minutes = round(seconds / 60)
    return f"{minutes} min left" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min left"


def for_stderr(quiet: bool) -> Progress:
    """The kind of progress that suits the process's standard error."""
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()


def say(text: str) -> None:
    """Print a line on stderr; that nobody reads it there is no reason to fail."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def format_amount(n: int, unit: str) -> str:
    """Bytes (unit B) as `format_bytes` has them, or so many of another unit: 8,192 tokens."""
    return format_bytes(n) if unit == "B" else f"{n:,} {unit}"


def format_bytes(n: int) -> str:
    """Decimal units as model sizes are quoted: 270.9 MB, 1.17 GB."""
    value = float(n)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
