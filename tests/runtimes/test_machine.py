"""Threads and memory of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmkit.runtimes import _machine


def fake_files(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Let /sys hold these files only."""

    def read_text(path: Path) -> str:
        try:
            return files[str(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(Path, "read_text", read_text)


def siblings(cpu: int, listed: str) -> dict[str, str]:
    return {f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": listed}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only some systems have affinity")
def test_hyperthreads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    fake_files(monkeypatch, siblings(0, "0,2") | siblings(1, "1,3") | siblings(2, "0,2") | siblings(3, "1,3"))
    assert _machine.default_threads() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {2})
    assert _machine.default_threads() == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only some systems have affinity")
@pytest.mark.parametrize(("quota", "threads"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("x", 8)])
def test_quota_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, quota: str, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    fake_files(monkeypatch, {"/sys/fs/cgroup/cpu.max": quota})
    assert _machine.default_threads() == threads


def test_this_machine() -> None:
    assert 1 <= _machine.default_threads() <= (os.cpu_count() or 1)
    memory = _machine.physical_memory()
    assert memory is None or memory > 1 << 28
