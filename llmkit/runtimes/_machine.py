"""What this machine offers a CPU runtime: cores to use and physical memory."""

from __future__ import annotations

import math
import os
from pathlib import Path


def default_threads() -> int:
    """Physical cores this process may use, at least 1.

    Hyper-threads of one core share its vector units, so a second thread there slows matrix products down; a
    container's CPU quota counts as well (threads beyond it are put to sleep while the others wait for them).
    Source: /sys/devices/system/cpu/*/topology, cgroup v2 `cpu.max`; elsewhere `os.cpu_count`.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    else:  # macOS
        cpus = set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota() or len(cores)))


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota() -> int | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return None


def physical_memory() -> int | None:
    """Bytes of main memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
