"""What transformers says: a prompt, the tokens that it generates after it, and its logits."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

import numpy as np

from deployments.check import greedy

N_PROMPT: Final = 20
N_STEPS: Final = 64


def write_tiny(folder: Path, family: str) -> Path:
    """A random model of two layers or a few more, with a tokenizer, of a row of `scripts/parities/families.py`."""
    families, tiny = import_module("parities.families").FAMILIES, import_module("parities.tiny")
    tiny.make(family, families[family], folder)
    return folder


def write_reference(model: Path, path: Path) -> Path:
    """The prompt and what follows greedily, int64 `ids`, and `logits`, float32 [len(ids), n_vocab]."""
    from llmkit.runtimes import torchlm

    with torchlm.load(model) as session:
        text = import_module("pydoc_data.topics").topics["assert"]
        ids, logits = greedy(session, session.tokenize(text)[:N_PROMPT], N_STEPS)
    np.savez(path, ids=np.array(ids), logits=logits, n_prompt=N_PROMPT)
    return path
