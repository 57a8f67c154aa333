#!/usr/bin/env python3
"""Encode all weights of two real models with every type and compare with ggml, byte for byte.

    scripts/exact.py [--type TYPE ...] [--threads N] [--every N]

SmolLM2 (135 million weights, dithered, rounded to bfloat16) and all-MiniLM-L6-v2 (23 million, float32), without and,
where a type uses it, with a random importance of columns. Takes about ten minutes on two cores, most of it ggml's;
llmkit's seconds have its compilation in them. Needs what the tests need (scripts/test makes that environment). Exit
status 1 if a byte differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from llmkit.quantize.schemes import SCHEMES, scheme  # noqa: E402
from llmkit.types import TensorType  # noqa: E402
from tests import ggml  # noqa: E402
from tests.quantize.real_weights import (  # noqa: E402
    RealTensor,
    minilm_tensors,
    rows_for,
    smollm2_tensors,
    some_importance,
)


@dataclass
class Count:
    """What one type came to: weights encoded, bytes compared, bytes that differ and where, seconds of either side."""

    weights: int = 0
    bytes: int = 0
    different: int = 0
    ours: float = 0
    theirs: float = 0
    tensors: list[str] = field(default_factory=list)

    def add(self, other: Count) -> None:
        self.weights += other.weights
        self.bytes += other.bytes
        self.different += other.different
        self.ours += other.ours
        self.theirs += other.theirs
        self.tensors += other.tensors


Counts = dict[tuple[TensorType, bool], Count]


def compare(tensor: RealTensor, types: list[TensorType]) -> Counts:
    """One tensor in all types."""
    weights = tensor.read()
    counts = {}
    for type in types:
        rows = rows_for(type, weights)
        importance = some_importance(tensor.name, rows.shape[1])
        for used in (None, importance) if scheme(type).uses_importance else (None,):
            counts[type, used is not None] = _compare(tensor.name, type, rows, used)
    return counts


def _compare(name: str, type: TensorType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> Count:
    packed = np.empty((len(rows), scheme(type).row_bytes(rows.shape[1])), np.uint8)
    started = time.thread_time()
    scheme(type).encode(rows, packed, importance)
    between = time.thread_time()
    expected = ggml.quantize(type, rows, importance)
    ended = time.thread_time()
    different = int(np.count_nonzero(packed != expected))
    return Count(rows.size, packed.nbytes, different, between - started, ended - between, [name] if different else [])


def main() -> int:
    """Compare and print one line per type."""
    written = [type for type in SCHEMES if scheme(type).encoder]
    parser = argparse.ArgumentParser(description="Compare every type with ggml on all weights of two real models.")
    parser.add_argument(
        "--type", action="append", choices=[type.name for type in written], help="this type only; repeatable"
    )
    parser.add_argument("--threads", type=int, default=2, help="tensors at a time (default 2)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th tensor only, for a quick look")
    arguments = parser.parse_args()
    types = [TensorType[name] for name in arguments.type or []] or written

    print(f"{ggml.build()}; {arguments.threads} threads")
    started = time.perf_counter()
    # The largest first, so that none is left over for one thread at the end.
    tensors = sorted(smollm2_tensors() + minilm_tensors(), key=lambda t: -t.size)[:: arguments.every]
    total: Counts = defaultdict(Count)
    with ThreadPoolExecutor(arguments.threads) as pool:
        for counts in pool.map(lambda tensor: compare(tensor, types), tensors):
            for key, count in counts.items():
                total[key].add(count)
    for (type, weighted), c in total.items():
        name = f"{type.name}{' with importance' if weighted else ''}"
        print(
            f"{name:24} {c.weights:12,} weights, {c.bytes:12,} bytes, {c.different} differ; "
            f"{c.ours:6.1f} s, ggml {c.theirs:6.1f} s{''.join(f'; {t}' for t in c.tensors[:5])}"
        )
    failed = sum(c.different for c in total.values())
    seconds = time.perf_counter() - started
    print(f"{len(tensors)} tensors, {len(total)} encodings of each, {failed} bytes differ, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
