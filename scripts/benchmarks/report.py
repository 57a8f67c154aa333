"""Tables of results, and what machine they were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine() -> str:
    """Processor, cores, memory and versions in a few lines."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "").split()
    vectors = " ".join(name for name in ("avx2", "fma", "avx512f", "avx512bw") if name in flags) or platform.machine()
    memory = int(next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0"))
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(
        f"{name} {_version(name)}" for name in ("llmkit", "numba", "llama-cpp-python", "gguf", "torch")
    )
    return (
        f"{cpu}; {cores} cores in use; {vectors}; {memory / 1e6:.1f} GB\n"
        f"Python {platform.python_version()}, {versions}; load average {os.getloadavg()[0]:.1f} at the start"
    )


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned table: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join(["", title, "", line(head), rule, *(line(row) for row in rows)])


def megabytes(n: float) -> str:
    """Decimal megabytes, as in `423.1 MB`."""
    return f"{n / 1e6:,.1f} MB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
