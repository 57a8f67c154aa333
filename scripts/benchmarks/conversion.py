"""Checkpoint to GGUF: llmkit in one process against the peer's steps."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import peer
from benchmarks.measure import Usage, middle, run, warm_page_cache
from benchmarks.report import megabytes, table

FILE_TYPE_Q4_K_M: Final = 15  # LLAMA_FTYPE_MOSTLY_Q4_K_M in llama.h
HEAD: Final = ("", "time", "CPU time", "peak anonymous", "peak with mapped files", "disk", "time ratio")


@dataclass(frozen=True)
class Options:
    """How to measure: repetitions, threads, working folder, the peer's converter (None: do not run the peer)."""

    repeat: int
    threads: int
    folder: Path
    converter: Path | None


def quantised(checkpoint: Path, options: Options) -> str:
    """Checkpoint to Q4_K_M: the peer needs a bf16 file in between."""
    ours, theirs, whole = options.folder / "ours.gguf", options.folder / "peer.gguf", options.folder / "peer-bf16.gguf"
    warm_page_cache(checkpoint)
    own: list[Usage] = []
    first: list[Usage] = []
    second: list[Usage] = []
    for _ in range(options.repeat):
        own.append(_ours(checkpoint, ours, "gguf-q4_k_m", options))
        if options.converter is not None:
            first.append(_run(peer.convert_command(options.converter, checkpoint, whole, "bf16"), whole, options))
            command = peer.quantize_command(whole, theirs, FILE_TYPE_Q4_K_M, options.threads)
            second.append(_without_start(_run(command, theirs, options)))
    rows = [_row("llmkit convert --to gguf-q4_k_m", middle(own), ours.stat().st_size, None)]
    if first:
        both = _both(middle(first), middle(second))
        extra = whole.stat().st_size + theirs.stat().st_size
        rows = [
            _row("convert_hf_to_gguf.py --outtype bf16", middle(first), whole.stat().st_size, None),
            _row(f"llama_model_quantize, {options.threads} threads", middle(second), theirs.stat().st_size, None),
            _row("the peer's two steps", both, extra, None),
            _row("llmkit convert --to gguf-q4_k_m", middle(own), ours.stat().st_size, both),
        ]
    note = _comparison(ours, theirs) if first else ""
    return _finish(f"{checkpoint.name} to Q4_K_M", rows, [ours, theirs, whole], options) + note


def unquantised(checkpoint: Path, options: Options) -> str:
    """Checkpoint to bf16: one step for both."""
    ours, theirs = options.folder / "ours.gguf", options.folder / "peer.gguf"
    warm_page_cache(checkpoint)
    own: list[Usage] = []
    other: list[Usage] = []
    for _ in range(options.repeat):
        own.append(_ours(checkpoint, ours, "gguf-bf16", options))
        if options.converter is not None:
            other.append(_run(peer.convert_command(options.converter, checkpoint, theirs, "bf16"), theirs, options))
    rows = []
    if other:
        rows.append(_row("convert_hf_to_gguf.py --outtype bf16", middle(other), theirs.stat().st_size, None))
    reference = middle(other) if other else None
    rows.append(_row("llmkit convert --to gguf-bf16", middle(own), ours.stat().st_size, reference))
    note = _comparison(ours, theirs) if other else ""
    return _finish(f"{checkpoint.name} to bf16", rows, [ours, theirs], options) + note


def _ours(checkpoint: Path, output: Path, target: str, options: Options) -> Usage:
    llmkit = Path(sys.executable).with_name("llmkit")
    threads = ("--threads", str(options.threads))
    return _run([llmkit, "convert", checkpoint, "--to", target, "-o", output, *threads], output, options)


def _run(command: list[str | Path], output: Path, options: Options) -> Usage:
    output.unlink(missing_ok=True)
    return run(command, options.folder / "log.txt")


def _without_start(usage: Usage) -> Usage:
    """The peer's quantiser is a C program in daily use: do not charge it for Python's start."""
    seconds = float(usage.stdout.split()[-1])
    return Usage(seconds, usage.cpu_seconds, usage.peak_anonymous, usage.peak_resident, usage.stdout)


def _both(first: Usage, second: Usage) -> Usage:
    return Usage(
        first.seconds + second.seconds,
        first.cpu_seconds + second.cpu_seconds,
        max(first.peak_anonymous, second.peak_anonymous),
        max(first.peak_resident, second.peak_resident),
        "",
    )


def _row(name: str, usage: Usage, disk: int, reference: Usage | None) -> tuple[str, ...]:
    ratio = f"{usage.seconds / reference.seconds:.2f}" if reference else ""
    return (
        name,
        f"{usage.seconds:.1f} s",
        f"{usage.cpu_seconds:.1f} s",
        megabytes(usage.peak_anonymous),
        megabytes(usage.peak_resident),
        megabytes(disk),
        ratio,
    )


def _comparison(ours: Path, theirs: Path) -> str:
    """A sentence on whether both files hold the same tensors, so that equal work is compared."""
    from llmkit.formats.gguf import open_gguf

    with open_gguf(ours) as own, open_gguf(theirs) as other:
        if own.tensors.keys() != other.tensors.keys():
            return "\n\nThe files do not hold the same tensors."
        equal = sum(
            info.dtype == other.tensors[name].dtype and own.raw(name).tobytes() == other.raw(name).tobytes()
            for name, info in own.tensors.items()
        )
        return f"\n\n{equal} of {len(own.tensors)} tensors are of the same type and byte for byte the peer's."


def _finish(title: str, rows: list[tuple[str, ...]], files: list[Path], options: Options) -> str:
    for path in files:
        path.unlink(missing_ok=True)
    runs = "one run" if options.repeat == 1 else f"medians of {options.repeat} runs, in turn"
    return table(f"{title}: {runs}, {options.threads} threads, files in the page cache", HEAD, rows)
