"""From the hidden states of tokens to the embedding of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import EngineError

POOLINGS: Final = ("mean", "cls", "last")
# What files call them (llama.h, `enum llama_pooling_type`); 0 is for none, 4 for a score.
_BY_NUMBER: Final = {"1": "mean", "2": "cls", "3": "last"}


def is_encoder(values: Mapping[str, str]) -> bool:
    """Whether a file's metadata says that tokens attend to those behind them: no KV cache, no next token."""
    return values.get(f"{values.get('general.architecture', '')}.attention.causal") == "false"


def choose_pooling(asked: str | None, values: Mapping[str, str], encoder: bool) -> str:
    """The pooling that is asked for, else the file's, else the mean for encoders and the last token for others.

    Raises EngineError for one that is not known.
    """
    if asked is not None:
        if asked not in POOLINGS:
            raise EngineError(f"pooling is {asked!r}: expected one of {', '.join(POOLINGS)}")
        return asked
    stated = values.get(f"{values.get('general.architecture', '')}.pooling_type")
    return _BY_NUMBER.get(stated or "", "mean" if encoder else "last")


def pool(states: NDArray[np.float32], pooling: str, *, normalize: bool) -> NDArray[np.float32]:
    """One vector, float32 [n_embd], of hidden states [n_tokens, n_embd]; of length 1 if `normalize`.

    A vector of zeros stays what it is.
    """
    vector: NDArray[np.float64]
    if pooling == "mean":
        vector = states.mean(axis=0, dtype=np.float64)
    else:
        vector = states[0 if pooling == "cls" else -1].astype(np.float64)
    length = np.linalg.norm(vector)
    if normalize and length > 0:
        vector /= length
    return np.asarray(vector, np.float32)
