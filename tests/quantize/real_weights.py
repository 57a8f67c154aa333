"""The weights of two real models, to encode: SmolLM2, as checkpoints have them, and all-MiniLM-L6-v2 in float32.

SmolLM2 is packaged in Q4_1; scripts/make_checkpoint.py decodes it and spreads every weight inside its quantisation
cell. Here, as in a checkpoint of it, the result is rounded to bfloat16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from llmkit.types import BLOCK_LAYOUTS, TensorType
from tests.conftest import SCRIPTS

Rows = NDArray[np.float32]
SUPERBLOCK = 256


@dataclass(frozen=True)
class RealTensor:
    """A tensor of a model; `read` gives its weights, float32 [rows, columns], a vector being one row."""

    name: str
    size: int
    read: Callable[[], Rows]


def smollm2_tensors() -> list[RealTensor]:
    """All 272 tensors."""
    make_checkpoint = _script("make_checkpoint")

    def reading(tensor: Any) -> Callable[[], Rows]:
        return lambda: _matrix(_rounded(tensor.values()))

    tensors = make_checkpoint.tensors_of(make_checkpoint.GGUFReader(make_checkpoint.packaged_gguf()), dither_seed=0)
    return [RealTensor(f"SmolLM2 {t.name}", int(np.prod(t.shape)), reading(t)) for t in tensors]


def minilm_tensors() -> list[RealTensor]:
    """All float32 tensors; the one other holds position numbers."""
    from safetensors import safe_open

    file: Any = safe_open(_script("minilm_weights").minilm_weights(), "numpy")
    parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)

    def reading(part: Any) -> Callable[[], Rows]:
        return lambda: _matrix(part[:])

    return [
        RealTensor(f"MiniLM {name}", int(np.prod(part.get_shape())), reading(part))
        for name, part in parts.items()
        if part.get_dtype() == "F32"
    ]


def rows_for(type: TensorType, weights: Rows) -> Rows:
    """Weights in rows that a type can encode: as they are, else in rows of a superblock, the last filled with zeros."""
    if weights.shape[1] % BLOCK_LAYOUTS[type].block_size == 0:
        return np.ascontiguousarray(weights)
    return np.pad(weights.reshape(-1), (0, -weights.size % SUPERBLOCK)).reshape(-1, SUPERBLOCK)


def some_importance(name: str, columns: int) -> NDArray[np.float32]:
    """An importance of columns as models have it: heavy-tailed, now and then zero; named, so the same on every run."""
    random = np.random.default_rng(crc32(f"{name} {columns}".encode()))
    values = random.standard_t(3, columns).astype(np.float32) ** 2
    values[random.random(columns) < 0.02] = 0
    return values


def _rounded(weights: NDArray[Any]) -> Rows:
    """To bfloat16, ties to even."""
    words = weights.view(np.uint32)
    rounded: Rows = ((words + 0x7FFF + (words >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded


def _matrix(weights: NDArray[Any]) -> Rows:
    return weights.reshape(-1, weights.shape[-1])


def _script(name: str) -> Any:
    """A module of scripts/."""
    from importlib import import_module

    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return import_module(name)
