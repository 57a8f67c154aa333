"""What is told of this machine, and of made-up ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from llmkit import machine
from llmkit.kernels.bandwidth import read_all
from llmkit.machine import Gpu, Machine, read_bandwidth, this_machine


def test_this_machine() -> None:
    found = this_machine()
    assert 1 <= found.n_cores <= (os.cpu_count() or 1)
    assert found.processor
    assert found.memory is not None
    assert found.available is not None
    assert 0 < found.available <= found.memory
    if found.architecture == "x86_64":
        assert "AVX" in found.instruction_sets


def test_bandwidth_is_that_of_memory() -> None:
    """Slower than a processor's caches together, and faster than a disk."""
    assert 5e8 < read_bandwidth(1) < 1e12


def test_everything_is_read() -> None:
    values = np.arange(640, dtype=np.float32)
    sums = np.empty(16, np.float32)
    read_all(values, sums)
    np.testing.assert_array_equal(sums, values.reshape(-1, 16).sum(0))


def _told_by(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return this_machine()


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _told_by("echo 'NVIDIA H100 80GB HBM3, 81559'; echo 'Quadro, T, 4096'", tmp_path, monkeypatch)
    assert found.gpus == (Gpu("NVIDIA H100 80GB HBM3", 81559 << 20), Gpu("Quadro, T", 4096 << 20))
    for program in ("exit 9", "echo nonsense", "echo 'GPU, [N/A]'"):
        assert _told_by(program, tmp_path, monkeypatch).gpus == ()
    monkeypatch.setattr(machine, "_TOLD", 0.1)
    assert _told_by("exec sleep 5", tmp_path, monkeypatch).gpus == ()


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", nothing)
    found = this_machine()
    assert found.instruction_sets == ()
    assert found.available is None
    assert found.processor


def test_pages_of_files_give_way_in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "meminfo": "MemAvailable:   20000000 kB\n",
        "memory.max": "10000000000",
        "memory.current": "9000000000",
        "memory.stat": "anon 1000000000\ninactive_file 7000000000\nactive_file 500000000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path: files[path.name])
    assert machine._available_memory() == 8_500_000_000
