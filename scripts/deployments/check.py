"""Run a model of a deployment format beside a stored reference: the greedy tokens, the logits, the divergence over the
same text, the speed. Prints JSON.

usage: python -m deployments.check FOLDER REFERENCE.npz

Runs in the format's own environment, where there is nothing but llmkit and what its extra brings, with scripts/ on
PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from divergence import divergences
from numpy.typing import NDArray


def main(folder: Path, reference: Path) -> dict[str, Any]:
    """What came of it."""
    from llmkit.runtimes import exported

    stored = np.load(reference)
    expected, n_prompt = stored["ids"].tolist(), int(stored["n_prompt"])
    with exported.load(folder) as session:
        context = session._context
        ids, logits = greedy(session, expected[:n_prompt], len(expected) - n_prompt)
        same = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=True)) if a != b), len(ids))
        # The logits of what both have read.
        differences = np.abs(logits[:same] - stored["logits"][:same])
        mean_kl = float(divergences(stored["logits"], session.logits(expected)).mean())
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
            "mean_kl": mean_kl,
            "prefill": prefill,
            "decode": decode,
        }


def greedy(session: Any, prompt: list[int], n: int) -> tuple[list[int], NDArray[np.float32]]:
    """The prompt and n tokens, each the most likely one, and the logits of all, [tokens, n_vocab]."""
    context, ids = session._context, list(prompt)
    rows = list(session.logits(ids))
    for _ in range(n):
        ids.append(int(rows[-1].argmax()))
        context.step(ids[-1])
        rows.append(context.latest().copy())
    return ids, np.array(rows)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
