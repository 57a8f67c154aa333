"""Reading the importance matrix that a conversion goes by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from llmkit.formats.imatrix import ImatrixFile, read_imatrix, read_products
from llmkit.quantize.feedback import Products
from llmkit.quantize.imatrix import ImportanceMatrix, mean_squares
from llmkit.types import TensorInfo


def read_importance(path: Path | str) -> ImportanceMatrix:
    """The importance matrix in a file of llama.cpp's, GGUF or the older binary form.

    Raises FormatError, naming the entry, for whatever is damaged, missing, negative or not finite.
    """
    file = read_imatrix(path)
    entries = {name: mean_squares(entry.sums, entry.counts) for name, entry in file.entries.items()}
    empty = {name: np.flatnonzero(entry.counts == 0) for name, entry in file.entries.items()}
    return ImportanceMatrix(
        path=file.path,
        datasets=file.datasets,
        n_chunks=file.n_chunks,
        chunk_size=file.chunk_size,
        entries=entries,
        without_data={name: tuple(experts.tolist()) for name, experts in empty.items() if experts.size},
        products=_products(file),
    )


def _products(file: ImatrixFile) -> dict[str, Callable[[], Products]]:
    """What reads the mean products of each matrix: its own, or those of one that multiplies the same activations."""
    owners = {_key(file, name): name for name in file.products}
    found: dict[str, Callable[[], Products]] = {}
    for name, entry in file.entries.items():
        owner = owners.get(_key(file, name))
        if owner is not None and entry.counts[0]:
            found[name] = partial(_mean_products, file.products[owner], entry.counts[0])
    return found


def _key(file: ImatrixFile, name: str) -> tuple[bytes, bytes]:
    entry = file.entries[name]
    return entry.sums.tobytes(), entry.counts.tobytes()


def _mean_products(info: TensorInfo, count: np.int64) -> Products:
    means: Products = read_products(info) / np.float32(count)
    return means
