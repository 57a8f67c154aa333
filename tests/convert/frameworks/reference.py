"""What formats must do: tiny checkpoints of families with different blocks, transformers' greedy tokens and logits."""

from __future__ import annotations

import atexit
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmkit.convert.frameworks.build import require_packages
from llmkit.convert.frameworks.registry import FRAMEWORKS
from llmkit.errors import DependencyError
from llmkit.runtimes import exported
from llmkit.runtimes.exported.context import EngineContext

SCRIPTS = str(Path(__file__).resolve().parents[3] / "scripts")
if SCRIPTS not in sys.path:
    sys.path.append(SCRIPTS)

N_PROMPT, N_STEPS = 20, 64
CONTEXT = 100  # of the cache that is written


@dataclass(frozen=True)
class Reference:
    """A checkpoint; a prompt and what transformers generates after it; its logits for all of these tokens."""

    folder: Path
    ids: list[int]
    logits: NDArray[np.float32]

    def greedy(self, folder: Path) -> tuple[list[int], NDArray[np.float32]]:
        """The same by a converted model: the prompt at once, then token by token over the filled cache."""
        model = exported.read_exported(folder)
        engine = exported._open(model, 1, "cpu")
        try:
            context = EngineContext(engine, model.n_context, model.tokens_at_once)
            ids = self.ids[:N_PROMPT]
            rows = [row for part in context.passes(ids, 0, None) for row in part.copy()]
            while len(ids) < N_PROMPT + N_STEPS:
                ids.append(int(context.latest().argmax()))
                context.step(ids[-1])
                rows.append(context.latest())
            return ids, np.array(rows)
        finally:
            engine.close()


@cache
def reference(family: str) -> Reference:
    """Of a row of `scripts/parities/families.py`."""
    import torch

    families, tiny = import_module("parities.families").FAMILIES, import_module("parities.tiny")
    parent = Path(mkdtemp(prefix="llmkit-reference-"))
    atexit.register(rmtree, parent, ignore_errors=True)
    folder = parent / family.replace(", ", "-").replace(" ", "-")
    model = tiny.make(family, families[family], folder)
    ids = list(range(5, 5 + N_PROMPT))
    rows, new, cache = [], ids, None
    with torch.inference_mode():
        while True:
            found = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            rows.append(found.logits[0].float().numpy())
            if len(ids) == N_PROMPT + N_STEPS:
                return Reference(folder, ids, np.concatenate(rows))
            new = [int(rows[-1][-1].argmax())]
            ids = ids + new


def require(target: str) -> None:
    """Skip the test if the libraries of a target are not installed; those of the default tests always are."""
    framework = FRAMEWORKS[target]
    try:
        require_packages(framework)
    except DependencyError as error:
        pytest.skip(str(error))


def values(**changes: Any) -> dict[str, Any]:
    """A valid llmkit.json but for the changes."""
    return {
        "version": 1,
        "format": "torch",
        "title": "PyTorch export (.pt2)",
        "precision": "fp32",
        "architecture": "llama",
        "parameters": 10,
        "context": 16,
        "trained_context": 16,
        "vocabulary": 8,
        "layers": 1,
        "cache_shape": [1, 1, 1, 16, 4],
        "tokens_at_once": 4,
        "token_ids": {"eos": 2},
        "model": "model.pt2",
        "tensors": {"a": {"dtype": "F32", "shape": [2, 3], "bytes": 24, "sha256": "00"}},
        **changes,
    }
