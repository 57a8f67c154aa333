"""Opening a GGUF file whose vocabulary is as large as Gemma's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter

from benchmarks.report import megabytes, table


def open_vocabulary(tokens: int, repeat: int, folder: Path) -> str:
    """Times of gguf-py's reader and llmkit's, on a file written by gguf-py; modules are imported beforehand."""
    from llmkit.formats.gguf import open_gguf

    path = folder / f"vocabulary-{tokens}.gguf"
    _write(path, tokens)

    def ours() -> int:
        with open_gguf(path) as file:
            return len(file.tensors)

    def ours_decoded() -> int:
        with open_gguf(path) as file:
            values: Any = file.get("tokenizer.ggml.tokens")
            return len(values)

    cases: list[tuple[str, Callable[[], int], int]] = [
        ("gguf-py GGUFReader", lambda: len(GGUFReader(path).tensors), 1),
        ("llmkit open_gguf", ours, 1),
        ("llmkit open_gguf and all tokens as strings", ours_decoded, tokens),
    ]
    medians: list[float] = []
    for _, action, expected in cases:
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            found = action()
            times.append(time.perf_counter() - started)
            if found != expected:
                raise SystemExit(f"read {found} entries, expected {expected}")
        medians.append(median(times))
    size = megabytes(path.stat().st_size)
    path.unlink()
    rows = [
        (name, f"{seconds:.3f} s", f"{seconds / medians[0]:.4f}")
        for (name, _, _), seconds in zip(cases, medians, strict=True)
    ]
    return table(f"Opening a GGUF file of {tokens:,} tokens, {size}: medians of {repeat}", ("", "time", "ratio"), rows)


def _write(path: Path, tokens: int) -> None:
    writer = GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"▁token{i}".encode() for i in range(tokens)])
    writer.add_token_scores([-float(i) for i in range(tokens)])
    writer.add_token_types([1] * tokens)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
