#!/usr/bin/env python3
"""Run a model of a deployment format beside a stored reference: the greedy tokens, the logits, the divergence over the
same text, the speed. Prints JSON.

usage: check.py FOLDER REFERENCE.npz

Runs in the format's own environment, where there is nothing but llmkit and what its extra brings.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path, reference: Path) -> dict[str, Any]:
    """What came of it."""
    from llmkit.runtimes import exported

    stored = np.load(reference)
    expected, n_prompt = stored["ids"].tolist(), int(stored["n_prompt"])
    with exported.load(folder) as session:
        context, ids = session._context, expected[:n_prompt]
        rows = list(session.logits(ids))
        while len(ids) < len(expected):
            ids.append(int(rows[-1].argmax()))
            context.step(ids[-1])
            rows.append(context.latest().copy())
        same = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=True)) if a != b), len(ids))
        # The logits of what both have read.
        differences = np.abs(np.array(rows[:same]) - stored["logits"][:same])
        divergence = mean_kl(stored["logits"], session.logits(expected))
        prompt = (expected * 8)[: min(256, session.info.n_context)]
        started = time.perf_counter()
        for _ in context.passes(prompt, 0, None):
            pass
        prefill = len(prompt) / (time.perf_counter() - started)
        context.keep_prefix(prompt[: len(prompt) // 2])
        started = time.perf_counter()
        for token in prompt[:32]:
            context.step(token)
        decode = 32 / (time.perf_counter() - started)
        return {
            "engine": session.info.engine,
            "same_tokens": same - n_prompt,
            "tokens": len(expected) - n_prompt,
            "difference": float(differences.max()),
            "mean_kl": divergence,
            "prefill": prefill,
            "decode": decode,
        }


def mean_kl(expected: Any, found: Any) -> float:
    """The mean divergence of the distributions that logits [n, n_vocab] stand for from those of `expected`."""
    logits = [np.asarray(x, np.float64) for x in (expected, found)]
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in logits)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
