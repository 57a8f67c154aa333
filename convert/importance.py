"""Reading the importance matrix that a conversion goes by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmkit.formats.imatrix import read_imatrix
from llmkit.quantize.imatrix import ImportanceMatrix, mean_squares


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
    )
