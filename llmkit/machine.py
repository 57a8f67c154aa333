"""The machine: processor, memory, GPUs, and how fast its memory is read."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmkit.runtimes._machine import default_threads, physical_memory

# What llama.cpp and ONNX Runtime have kernels for, as /proc/cpuinfo spells it (x86, then ARM), and as people do.
_SETS: Final = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx_vnni": "AVX-VNNI", "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI", "avx512_bf16": "AVX-512 BF16", "amx_int8": "AMX",
    "asimd": "NEON", "asimddp": "dot product", "i8mm": "I8MM", "sve": "SVE", "sve2": "SVE2",
}  # fmt: skip
_TOLD: Final = 10  # seconds that nvidia-smi has
_BUFFER: Final = 1 << 30  # bytes to read: more than processors cache
_LEAST: Final = 64 << 20
_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU: its name and bytes of memory."""

    name: str
    memory: int


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine. memory, available: bytes, None where the system does not tell. n_cores: physical ones to use."""

    system: str
    processor: str
    architecture: str
    n_cores: int
    instruction_sets: tuple[str, ...]
    memory: int | None
    available: int | None
    gpus: tuple[Gpu, ...]

    @property
    def is_apple_silicon(self) -> bool:
        return self.system == "Darwin" and self.architecture == "arm64"

    @property
    def is_intel(self) -> bool:
        return "intel" in self.processor.lower()


def this_machine() -> Machine:
    """What the system tells of the machine; runs nvidia-smi where there is one."""
    info = _cpu_info()
    return Machine(
        system=platform.system(),
        processor=processor(),
        architecture=platform.machine(),
        n_cores=default_threads(),
        instruction_sets=tuple(name for flag, name in _SETS.items() if flag in info.get("flags", "").split()),
        memory=physical_memory(),
        available=_available_memory(),
        gpus=nvidia_gpus(),
    )


def processor() -> str:
    """The processor's name."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def read_bandwidth(n_threads: int | None = None) -> float:
    """Bytes a second at which the machine's memory is read by so many threads, by default one per core; the best of
    three rounds over at most 1 GiB."""
    import numpy as np
    from numpy.typing import NDArray

    from llmkit.kernels.bandwidth import read_all

    n_threads = n_threads or default_threads()
    available = _available_memory()
    size = _BUFFER if available is None else min(_BUFFER, max(_LEAST, available // 4))
    part = max(64, size // n_threads // 4 // 64 * 64)
    buffers: list[NDArray[np.float32]] = [np.ones(part, np.float32) for _ in range(n_threads)]
    sums = np.empty((n_threads, 16), np.float32)
    with ThreadPoolExecutor(n_threads) as pool:

        def once() -> None:
            list(pool.map(read_all, buffers, sums))

        once()  # compiles, and wakes the threads
        return 4 * part * n_threads / min(_seconds(once) for _ in range(_ROUNDS))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cpu_info() -> dict[str, str]:
    """The first processor's lines in /proc/cpuinfo; on ARM `Features` as `flags`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault("flags" if key.strip() == "Features" else key.strip(), value.strip())
    return found


def _available_memory() -> int | None:
    """Bytes that programs may still take, within the container's limit; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return found
    # Pages of files that were read count as used, and give way.
    kept = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return max(0, min(found, limit - used + kept))


def nvidia_gpus() -> tuple[Gpu, ...]:
    """Those that nvidia-smi tells of."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=_TOLD, check=True).stdout
        rows = [line.rpartition(",") for line in text.splitlines() if line.strip()]
        return tuple(Gpu(name.strip(), int(size) << 20) for name, _, size in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
