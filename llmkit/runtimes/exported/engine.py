"""What an engine for a deployment format offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import DependencyError, EngineError, LlmkitError
from llmkit.formats.exported import ExportedModel


class Engine(Protocol):
    """A loaded model and its cache of keys and values."""

    @property
    def name(self) -> str:
        """Engine and version."""
        ...

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda"."""
        ...

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Process tokens ids [n] as those from `position` on: logits, float32 [n, n_vocab].

        What the cache held from there on is forgotten. The array is valid until the next call.
        """
        ...

    def close(self) -> None: ...


class FixedEngine(ABC):
    """An engine of models that have a function for a run of tokens and one for a single token.

    Shorter runs are filled up: what that writes into the cache lies behind the tokens, where the next ones go, and
    nothing looks at it before.
    """

    device = "cpu"

    def __init__(self, model: ExportedModel) -> None:
        self._model = model
        self._n_run = model.tokens_at_once

    def run(self, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """See `Engine`."""
        end, short = position + self._n_run, self._model.short_positions
        counts = short is not None and position + len(ids) <= short < end  # what is filled up would count as tokens
        if len(ids) > 1 and end <= self._model.n_context and not counts:
            filled = np.zeros(self._n_run, np.int64)
            filled[: len(ids)] = ids
            return self._call("prefill", filled, position)[: len(ids)]
        if len(ids) == 1:
            return self._call("decode", ids, position)
        return np.concatenate([self._call("decode", ids[i : i + 1], position + i).copy() for i in range(len(ids))])

    @abstractmethod
    def _call(self, use: str, ids: NDArray[np.int64], position: int) -> NDArray[np.float32]:
        """Run one of the two functions, `prefill` or `decode`; the array is valid until the next call."""


@contextmanager
def engine_errors(model: ExportedModel, what: str, package: str, extra: str) -> Iterator[None]:
    """What goes wrong in another project's code as llmkit's errors."""
    try:
        yield
    except ImportError as error:
        raise DependencyError(error.name or package, extra, f"running {model.format} models") from error
    except (LlmkitError, MemoryError):
        raise
    except Exception as error:  # of a damaged file it may be any
        raise EngineError(f"{model.path}: {package} {what}: {error}") from error
