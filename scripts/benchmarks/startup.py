"""How long the command line takes to start, and how long a first conversion takes."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import middle, run
from benchmarks.report import table


def help_text(repeat: int, converter: Path | None, log: Path) -> str:
    """`llmkit --help` between an empty Python program and the peer's converter."""
    commands: list[tuple[str, list[str | Path]]] = [
        ("python -c pass", [sys.executable, "-c", "pass"]),
        ("llmkit --help", [_llmkit(), "--help"]),
    ]
    if converter is not None:
        commands.append(("convert_hf_to_gguf.py --help", [sys.executable, converter, "--help"]))
    rows = []
    for name, command in commands:
        usages = [run(command, log) for _ in range(repeat + 1)][1:]  # the first one fills caches
        rows.append((name, f"{middle(usages).seconds:.3f} s", f"{max(u.seconds for u in usages):.3f} s"))
    return table(f"Start: {repeat} runs each", ("", "median", "slowest"), rows)


def first_conversion(checkpoint: Path, folder: Path) -> str:
    """A small checkpoint to Q4_K_M with an empty kernel cache, which compiles the kernels, and again."""
    rows = []
    with TemporaryDirectory() as cache:
        for name in ("first, kernels are compiled", "second, kernels are loaded"):
            output = folder / "first.gguf"
            output.unlink(missing_ok=True)
            command: list[str | Path] = [_llmkit(), "convert", checkpoint, "--to", "gguf-q4_k_m", "-o", output]
            usage = run(command, folder / "log.txt", env={"LLMKIT_CACHE": cache})
            rows.append((name, f"{usage.seconds:.1f} s", f"{usage.cpu_seconds:.1f} s"))
            output.unlink()
    return table(f"Conversion of {checkpoint.name} to Q4_K_M on a new machine", ("", "time", "CPU time"), rows)


def _llmkit() -> Path:
    return Path(sys.executable).with_name("llmkit")
