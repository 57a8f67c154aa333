"""What evaluating and measuring cost beyond the engine: llmkit eval and llmkit bench beside bare loops of llama.cpp."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks.conversion import Options
from benchmarks.report import table

_TOKENS: Final = 8192
_CONTEXT: Final = 512


def overhead(model: Path, options: Options, quick: bool) -> str:
    """Seconds of the engine alone and of llmkit for the same tokens, in turns."""
    n_windows = 4 if quick else 2 * _TOKENS // _CONTEXT
    rows = []
    evaluations: dict[str, list[float]] = {"bare": [], "llmkit": []}
    for _ in range(options.repeat):
        evaluations["bare"].append(_bare_windows(model, n_windows, options.threads))
        evaluations["llmkit"].append(_evaluation(model, n_windows, options.threads))
    rows.append(_row(f"llmkit eval, {n_windows} windows of {_CONTEXT}, second halves", evaluations))
    rows += _loops(model, options.threads, 2 if quick else 5 * options.repeat)
    head = ("", "llama.cpp alone", "llmkit", "ratio")
    return table(f"{model.name}, {options.threads} threads, medians of {options.repeat}", head, rows)


def _row(name: str, seconds: dict[str, list[float]]) -> tuple[str, ...]:
    bare, ours = (median(seconds[key]) for key in ("bare", "llmkit"))
    ratio = median(b / a for a, b in zip(seconds["bare"], seconds["llmkit"], strict=True))
    return name, f"{bare:.2f} s", f"{ours:.2f} s", f"{ratio:.3f}"


def _evaluation(model: Path, n_windows: int, threads: int) -> float:
    import llmkit

    (found,) = llmkit.evaluate(model, protocol="llama.cpp", context=_CONTEXT, chunks=n_windows, threads=threads).models
    return found.seconds


def _loops(model: Path, threads: int, turns: int) -> list[tuple[str, ...]]:
    """What llmkit bench times, and the bare loop, turn by turn in one process: the machine's own changes cancel."""
    from llmkit import runtimes
    from llmkit.evaluate.speed import Test, seconds

    tokens = np.random.default_rng(0).integers(100, 40000, 2 * _CONTEXT).tolist()
    bare = _Bare(model, threads)
    rows = []
    with runtimes.load(model, n_context=_CONTEXT + 1, n_threads=threads) as session:
        for test, alone in ((Test(_CONTEXT, 0, 0), bare.prompt), (Test(0, 128, 0), bare.one_by_one)):
            found: dict[str, list[float]] = {"bare": [], "llmkit": []}
            for turn in range(turns + 1):
                pair = alone(tokens), seconds(session, test, tokens, turn)
                if turn:  # the first one warms up
                    found["bare"].append(pair[0])
                    found["llmkit"].append(pair[1])
            rows.append(_row(f"what llmkit bench times, {test.name}", found))
    bare.close()
    return rows


class _Bare:
    """A context of llama.cpp without llmkit: what a loop in C would call."""

    def __init__(self, model: Path, threads: int) -> None:
        import llama_cpp as lib

        self.lib: Any = lib
        lib.llama_log_set(_SILENT(lib), None)
        self.model = lib.llama_load_model_from_file(str(model).encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = _CONTEXT + 1
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, params)
        self.batch = lib.llama_batch_init(_CONTEXT + 1, 0, 1)
        self.memory = lib.llama_get_memory(self.context)

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_free_model(self.model)

    def decode(self, ids: Any, start: int, first_output: int) -> None:
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = int(token), start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = start + i >= first_output
        assert self.lib.llama_decode(self.context, batch) == 0
        self.lib.llama_synchronize(self.context)

    def prompt(self, ids: Any) -> float:
        """Seconds of 512 tokens with the logits of the last one."""
        self.lib.llama_memory_clear(self.memory, True)
        started = time.perf_counter()
        self.decode(ids[:_CONTEXT], 0, _CONTEXT - 1)
        return time.perf_counter() - started

    def one_by_one(self, ids: Any) -> float:
        """Seconds of 128 tokens behind a first one."""
        self.lib.llama_memory_clear(self.memory, True)
        self.decode(ids[:1], 0, 0)
        started = time.perf_counter()
        for i in range(1, 129):
            self.decode(ids[i : i + 1], i, 0)
        return time.perf_counter() - started


def _SILENT(lib: Any) -> Any:
    global _callback  # llama.cpp keeps the pointer
    _callback = lib.llama_log_callback(lambda *_: None)
    return _callback


_callback: Any = None


def _bare_windows(model: Path, n_windows: int, threads: int) -> float:
    ids = np.random.default_rng(0).integers(100, 40000, (n_windows, _CONTEXT))
    bare = _Bare(model, threads)
    started = time.perf_counter()
    for window in ids:
        bare.lib.llama_memory_clear(bare.memory, True)
        bare.decode(window, 0, _CONTEXT // 2)
    seconds = time.perf_counter() - started
    bare.close()
    return seconds
