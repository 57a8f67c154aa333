"""Weights that are rounded to 4 bits, and what is known of how much their columns matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmkit.convert.archs import HParams
from llmkit.convert.archs.structure import Structure
from llmkit.convert.network.balance import balance
from llmkit.convert.network.weights import Weight
from llmkit.convert.plan import PlannedTensor
from llmkit.quantize.blockwise import BlockwiseFormat
from llmkit.quantize.imatrix import ImportanceMatrix
from llmkit.quantize.schemes import WeightType


def is_searched(type: WeightType) -> bool:
    """Whether importance counts: scales of 4 bits are searched for."""
    return isinstance(type, BlockwiseFormat) and type.bits == 4


def weigh(
    tensors: Sequence[PlannedTensor],
    weights: Mapping[str, Weight],
    importance: ImportanceMatrix,
    structure: Structure,
    h: HParams,
) -> tuple[list[PlannedTensor], list[str]]:
    """The tensors, those of 4 bits with the importance of their columns and balanced by it; and notes on that.

    weights: by the names of tensors that are some. Raises FormatError for an importance matrix that does not fit the
    model.
    """
    names = {t.name: _name_in(importance, weights, t.name) for t in tensors if is_searched(t.type)}
    shapes = {t.name: t.shape for t in tensors}
    others = {member for name in names for member in weights[name].members}
    notes = list(importance.coverage([(names[name], shapes[name]) for name in names], others).notes())
    weighed = [
        replace(
            t,
            importance=importance.of(names[t.name], t.shape),
            feedback=importance.feedback(names[t.name], t.shape) if len(t.shape) == 2 else None,
        )
        if t.name in names
        else t
        for t in tensors
    ]
    n_fed_back = sum(t.feedback is not None for t in weighed)
    if n_fed_back:
        notes.append(f"{n_fed_back} matrices are rounded with feedback by products of activations")
    weighed, n_balanced = balance(weighed, structure, h)
    if n_balanced:
        notes.append(f"{n_balanced} matrices have their columns balanced by importance, which norms take up")
    return weighed, notes


def _name_in(importance: ImportanceMatrix, weights: Mapping[str, Weight], name: str) -> str:
    """The name under which importance is noted: an embedding that is the output matrix, too, counts as that."""
    if name == "token_embd.weight" and "output.weight" not in weights and name not in importance.entries:
        return "output.weight"
    return weights[name].members[0]
