"""Time and memory of a whole process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Final

POLL_SECONDS: Final = 0.005


@dataclass(frozen=True)
class Usage:
    """What one process took. Sizes in bytes.

    Both peaks are read from /proc/<pid>/status every 5 ms, children included. `peak_anonymous` is the largest
    RssAnon + RssShmem seen: memory that the process needs. `peak_resident` is VmHWM, the kernel's own high-water
    mark of all resident pages, which counts pages of mapped files too; those belong to the page cache and can be
    dropped at any time. (getrusage's ru_maxrss would not do: it starts from the parent's own size.)
    """

    seconds: float
    cpu_seconds: float
    peak_anonymous: int
    peak_resident: int
    stdout: str


def run(command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> Usage:
    """Run a command to its end, its messages in `log`. Raises SystemExit with the log's end if it fails."""
    words = [str(word) for word in command]
    with log.open("wb") as messages, TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=messages, env={**os.environ, **(env or {})}
        )
        anonymous = resident = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            now = _memory(process.pid)
            anonymous, resident = max(anonymous, now[0]), max(resident, now[1])
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        stdout = output.read().decode(errors="replace")
    if process.returncode:
        end = log.read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(words)}\nfailed with status {process.returncode}:\n{stdout[-1000:]}{end}")
    return Usage(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_anonymous=anonymous,
        peak_resident=resident,
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


def _memory(pid: int) -> tuple[int, int]:
    """Anonymous bytes now and the high-water mark of a process and its descendants; 0 for one that has just ended."""
    anonymous = resident = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                anonymous += int(line.split()[1]) * 1024
            elif line.startswith("VmHWM:"):
                resident = int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return anonymous, resident
    for child in children:
        more = _memory(int(child))
        anonymous, resident = anonymous + more[0], resident + more[1]
    return anonymous, resident
