"""Time and memory of a whole process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

POLL_SECONDS: Final = 0.005


@dataclass(frozen=True)
class Usage:
    """What one process took. Sizes in bytes.

    `peak_anonymous` is the largest sum of private and shared anonymous pages (RssAnon + RssShmem of
    /proc/<pid>/status, read every 5 ms, children included): memory that the process needs. `peak_resident` is the
    kernel's own high-water mark of all resident pages (ru_maxrss), which counts pages of mapped files too; those
    belong to the page cache and can be dropped at any time.
    """

    seconds: float
    cpu_seconds: float
    peak_anonymous: int
    peak_resident: int
    stdout: str


def run(command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> Usage:
    """Run a command to its end, its messages in `log`. Raises SystemExit with the log's end if it fails."""
    words = [str(word) for word in command]
    with log.open("wb") as messages:
        started = time.perf_counter()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages, env={**os.environ, **(env or {})}
        )
        peak = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, _anonymous_bytes(process.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stdout is not None
        with process.stdout as pipe:
            stdout = pipe.read().decode(errors="replace")
    if process.returncode:
        end = log.read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(words)}\nfailed with status {process.returncode}:\n{stdout[-1000:]}{end}")
    return Usage(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_anonymous=peak,
        peak_resident=usage.ru_maxrss * 1024,
        stdout=stdout,
    )


def middle(usages: Sequence[Usage]) -> Usage:
    """Median of the times, largest of the peaks."""
    return Usage(
        seconds=median(usage.seconds for usage in usages),
        cpu_seconds=median(usage.cpu_seconds for usage in usages),
        peak_anonymous=max(usage.peak_anonymous for usage in usages),
        peak_resident=max(usage.peak_resident for usage in usages),
        stdout=usages[-1].stdout,
    )


def warm_page_cache(folder: Path) -> None:
    """Read all files once, so that no measurement pays for a cold disk."""
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _anonymous_bytes(pid: int) -> int:
    """Anonymous pages of a process and its descendants; 0 for one that has just ended."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return total
    return total + sum(_anonymous_bytes(int(child)) for child in children)
