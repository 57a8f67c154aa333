"""The importance of a model's weights: how large the activations are that meet each column of a matrix.

An encoder that knows it spends its precision on the columns that count. The numbers are those that llama-quantize
gives ggml (llama.cpp, tools/quantize/quantize.cpp): the mean of the squared activations of each column, over all
tokens that the matrix, or the expert, has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.quantize.feedback import Feedback, Products

# llama-quantize leaves these out when the length does not fit and refuses any other tensor
# (llama-quant.cpp, tensor_name_match_token_embd): an embedding is looked up, not multiplied.
_MAY_MISFIT: Final = ("token_embd.weight", "per_layer_token_embd.weight")
_SHOWN: Final = 8  # names in a note


def mean_squares(sums: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Importance from sums of squares, float32 [experts, columns], and the tokens each expert saw, int64 [experts].

    One float32 division each, as in llama-quantize; an expert that saw no token gets ones.
    """
    seen = counts > 0
    divisors = np.where(seen, counts, 1).astype(np.float32)
    return np.where(seen[:, None], sums / divisors[:, None], np.float32(1))


@dataclass(frozen=True, slots=True)
class Coverage:
    """How an importance matrix fits the tensors of a model that are to be quantised.

    missing: tensors it says nothing about; they are quantised without importance.
    partial: tensors with experts that saw no token, and how many of how many; those get equal importance.
    unused: entries that are none of these tensors.
    """

    missing: tuple[str, ...]
    partial: Mapping[str, tuple[int, int]]
    unused: tuple[str, ...]

    def notes(self) -> list[str]:
        """What a user should know, one line per matter; empty if everything fits."""
        notes = []
        if self.missing:
            notes.append(f"the importance matrix has no data for {_listed(self.missing)}: quantised without importance")
        if self.partial:
            named = [f"{name} ({without} of {experts})" for name, (without, experts) in self.partial.items()]
            notes.append(
                f"the importance matrix has no data for some experts of {_listed(named)}: their columns count equally"
            )
        if self.unused:
            notes.append(f"the importance matrix also has entries that are not used here: {_listed(self.unused)}")
        return notes


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """The importance of the columns of many tensors, as a file at `path` gives it.

    datasets: the texts it was computed from. n_chunks, chunk_size: how much of them, in chunks of that many tokens; 0
        where the file does not say.
    entries: by tensor name, float32 [experts, columns], finite and not negative. A file may give all experts as one
        row; `of` brings an entry into the tensor's own form.
    without_data: entries with experts that saw no token, and which; their importance is 1 throughout.
    products: by tensor name, what reads the mean products of the activations of columns, float32 [runs, width, width].
    """

    path: Path
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int
    entries: Mapping[str, NDArray[np.float32]]
    without_data: Mapping[str, tuple[int, ...]]
    products: Mapping[str, Callable[[], Products]] = field(default_factory=dict)

    def of(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The importance for tensor `name` of `shape` (slowest dimension first), float32 [experts, columns].

        `experts` is 1 for a plain matrix, shape[-3] for a stack of them. None if there is no entry, or one that does
        not fit an embedding. Raises FormatError if the entry's length is another.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        columns = shape[-1] if shape else 1
        experts = prod(shape[:-2])
        if entry.size != experts * columns:
            if name in _MAY_MISFIT:
                return None
            stack = f"{experts} experts with " if experts != 1 else ""
            raise FormatError(
                self.path,
                f"has {entry.size:,} values, but the tensor has {stack}{columns:,} columns; this importance matrix is "
                "probably another model's: compute one from this model (llmkit imatrix)",
                tensor=name,
            )
        return entry.reshape(experts, columns)

    def feedback(self, name: str, shape: tuple[int, ...]) -> Feedback | None:
        """How tensor `name` of `shape` may be rounded with feedback; None if nothing is known about products."""
        if name not in self.products or self.of(name, shape) is None:
            return None
        return Feedback(self.products[name], self.path, name)

    def coverage(self, tensors: Sequence[tuple[str, tuple[int, ...]]], others: Collection[str] = ()) -> Coverage:
        """How this fits `tensors`, the (name, shape slowest first) of those that are to be quantised.

        others: names of what has the same entries as one of them, and so is no unused one.

        Raises FormatError if a length is wrong, or if not one entry is among them.
        """
        missing = []
        partial = {}
        used = set()
        for name, shape in tensors:
            if self.of(name, shape) is None:
                missing.append(name)
                continue
            used.add(name)
            if name in self.without_data:
                partial[name] = (len(self.without_data[name]), len(self.entries[name]))
        if tensors and not used:
            raise FormatError(
                self.path,
                f"none of its {len(self.entries):,} entries ({_listed(sorted(self.entries)[:3])}, ...) is among the "
                f"{len(tensors):,} tensors to be quantised ({_listed([name for name, _ in tensors[:3]])}, ...): this "
                "importance matrix is another model's; compute one from this model (llmkit imatrix)",
            )
        used.update(others)
        return Coverage(tuple(missing), partial, tuple(name for name in self.entries if name not in used))
