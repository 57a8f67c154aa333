"""The context of a session over an engine: which tokens the cache holds, and passes of at most so many tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmkit.runtimes._prefix import common_prefix
from llmkit.runtimes._session import AT_ONCE
from llmkit.runtimes.exported.engine import Engine


class EngineContext:
    """Implements `llmkit.runtimes._session.LogitsContext`. at_once: tokens that pass together, at most."""

    def __init__(self, engine: Engine, n_context: int, at_once: int) -> None:
        self._engine: Engine | None = engine
        self._at_once = at_once
        self._latest: NDArray[np.float32] = np.empty(0, np.float32)
        self.n_context = n_context
        self.cached: list[int] = []

    @property
    def is_open(self) -> bool:
        return self._engine is not None

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    def latest(self) -> NDArray[np.float32]:
        return self._latest

    def keep_prefix(self, ids: Sequence[int]) -> int:
        del self.cached[min(common_prefix(self.cached, ids), len(ids) - 1) :]
        return len(self.cached)

    def feed(self, ids: Sequence[int]) -> None:
        for piece in self._pieces(ids):
            self._pass(piece)

    def step(self, token: int) -> None:
        self._pass([token])

    def passes(
        self, ids: Sequence[int], skip: int, at_a_time: int | None, *, reuse: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        if not reuse:
            self.cached.clear()
        self.feed(ids[self.keep_prefix(ids[: skip + 1]) if reuse else 0 : skip])
        step = min(AT_ONCE, max(1, at_a_time or AT_ONCE))
        for start in range(skip, len(ids), step):
            pieces = self._pieces(ids[start : start + step])
            if len(pieces) == 1:
                yield self._pass(pieces[0])
            else:
                yield np.concatenate([self._pass(piece).copy() for piece in pieces])

    def _pieces(self, ids: Sequence[int]) -> list[Sequence[int]]:
        """What can pass the engine together."""
        return [ids[start : start + self._at_once] for start in range(0, len(ids), self._at_once)]

    def _pass(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Process further tokens; their logits, float32 [n, n_vocab]."""
        assert self._engine is not None
        try:
            rows = self._engine.run(np.array(ids, np.int64), len(self.cached))
        except BaseException:  # some layers may have been written, and others not
            self.cached.clear()
            raise
        self._latest = rows[-1].copy()
        self.cached += ids
        return rows
