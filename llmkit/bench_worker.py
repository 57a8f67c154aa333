"""The process in which one model is measured: a request as JSON on standard input, results as lines of JSON.

A process of its own gives every engine the same start: its threads, its memory, nothing left behind by another.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """Measure what the request says; the first line tells of the model, the further ones of runs."""
    from llmkit.errors import LlmkitError

    request: dict[str, Any] = json.load(sys.stdin)
    # Engines may print, from C as well; what they say must not come between the lines that are told.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**values: Any) -> None:
        print(json.dumps(values), file=output, flush=True)

    try:
        _measure(request, tell)
    except LlmkitError as error:
        tell(error=str(error))
        return 1
    return 0


def _measure(request: dict[str, Any], tell: Any) -> None:
    from llmkit import runtimes
    from llmkit.evaluate.speed import Test, seconds
    from llmkit.evaluate.texts import python_docs

    tests = [Test(**values) for values in request["tests"]]
    options = {name: request[name] for name in ("n_threads", "device") if request.get(name) is not None}
    n_context = max(test.n_context for test in tests)
    started = time.perf_counter()
    with runtimes.load(Path(request["path"]), n_context=n_context, **options) as session:
        load_seconds = time.perf_counter() - started
        info = session.info
        tell(
            engine=info.engine,
            architecture=info.architecture,
            parameters=info.n_params,
            threads=info.n_threads,
            device=info.extra.get("device", "cpu"),
            load_seconds=load_seconds,
        )
        tokens = session.tokenize(python_docs()[: 32 * n_context])[: 2 * n_context]
        for number, test in enumerate(tests):
            for turn in range(request["repetitions"] + 1):  # the first one warms up
                found = seconds(session, test, tokens, turn)
                if turn:
                    tell(test=number, seconds=found)
        tell(peak_resident=_memory("VmHWM"), anonymous=_memory("RssAnon"))


def _memory(kind: str) -> int | None:
    """Bytes by /proc (getrusage's peak would start from that of the process before this); None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{kind}:")]
    return int(found[0][1]) * 1024 if found else None


if __name__ == "__main__":
    sys.exit(main())
