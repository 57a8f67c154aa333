"""Moving the scale of columns between a matrix and what its input comes from, before the matrix is rounded.

Blocks of weights share a scale, so that columns which meet large activations are rounded as coarsely as their
neighbours. If such a column is multiplied by s, and what computes its input divided by it, the model stays the same,
and the error of that column becomes s times smaller. Norms and the gated MLP's upward matrix can be divided without
cost; so could values for the matrix behind attention, but on SmolLM2 that gained nothing. After AWQ (Lin et al. 2023,
arXiv:2306.00978), with a fixed exponent and mean squares from an importance matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs import HParams
from llmkit.convert.archs.structure import Structure
from llmkit.convert.plan import PlannedTensor, Scaling

# Of the mean square of a column's activations. Measured on SmolLM2: with 0.125 and 0.2 the KL divergence is 5 % larger,
# and trying several for each matrix gives 1 % less.
EXPONENT: Final = 0.15
_LEAST: Final = 1e-4  # of the mean: columns that meet next to nothing are not made arbitrarily small

Vector = NDArray[np.float32]


def balance(tensors: Sequence[PlannedTensor], structure: Structure, h: HParams) -> tuple[list[PlannedTensor], int]:
    """The tensors with scales moved where that is possible and there is importance; also how many matrices that are."""
    found = {t.name: t for t in tensors}
    count = 0
    for block in range(h.n_layers):
        prefix = f"blk.{block}."
        if structure.norm_before_attention is not None:
            norm = f"{prefix}{structure.norm_before_attention}.weight"
            count += _after_norm(found, norm, [f"{prefix}attn_{role}.weight" for role in ("qkv", "q", "k", "v")])
        if f"{prefix}ffn_down.weight" in found:  # experts share their norm with the router
            if structure.norm_before_mlp is not None:
                norm = f"{prefix}{structure.norm_before_mlp}.weight"
                count += _after_norm(found, norm, [f"{prefix}ffn_{role}.weight" for role in ("gate", "up")])
            count += _after_up(found, prefix)
    if "output.weight" in found:
        count += _after_norm(found, "output_norm.weight", ["output.weight"])
    return list(found.values()), count


def _scales(tensor: PlannedTensor) -> Vector | None:
    """What to multiply the columns by, their geometric mean 1; None where the importance does not say."""
    if tensor.importance is None or len(tensor.importance) != 1:
        return None
    importance = tensor.importance[0].astype(np.float64)
    mean = importance.mean()
    if not 0 < mean < np.inf:
        return None
    logarithms = EXPONENT * np.log(np.maximum(importance / mean, _LEAST))
    scales: Vector = np.exp(logarithms - logarithms.mean()).astype(np.float32)
    return scales


def _after_norm(found: dict[str, PlannedTensor], norm: str, names: Sequence[str]) -> int:
    matrices = [found[name] for name in names if name in found]
    scales = next((s for s in map(_scales, matrices) if s is not None), None)
    if norm not in found or scales is None:
        return 0
    for matrix in matrices:
        found[matrix.name] = _with_columns(matrix, scales)
    found[norm] = _scaled(found[norm], columns=np.float32(1) / scales)
    return len(matrices)


def _after_up(found: dict[str, PlannedTensor], prefix: str) -> int:
    """ffn_down takes the product of activated gates and what goes up; of one matrix for both the latter is the end."""
    down, up, bias = (found.get(f"{prefix}ffn_{name}") for name in ("down.weight", "up.weight", "up.bias"))
    if down is None or up is None or (scales := _scales(down)) is None:
        return 0
    found[down.name] = _with_columns(down, scales)
    n_gates = up.shape[0] - len(scales)
    rows = np.concatenate([np.ones(n_gates, np.float32), np.float32(1) / scales])
    found[up.name] = _scaled(up, rows=rows)
    if bias is not None:
        found[bias.name] = _scaled(bias, columns=rows)
    return 1


def _with_columns(tensor: PlannedTensor, scales: Vector) -> PlannedTensor:
    """With the columns multiplied, whose errors then count for less."""
    scaled = _scaled(tensor, columns=scales)
    if scaled.importance is not None:
        scaled = replace(scaled, importance=(scaled.importance / scales**2).astype(np.float32))
    return scaled if scaled.feedback is None else replace(scaled, feedback=scaled.feedback.scaled(scales))


def _scaled(tensor: PlannedTensor, *, rows: Vector | None = None, columns: Vector | None = None) -> PlannedTensor:
    before = tensor.scaling or Scaling()

    def both(one: Vector | None, other: Vector | None) -> Vector | None:
        if one is None or other is None:
            return other if one is None else one
        product: Vector = one * other
        return product

    return replace(tensor, scaling=Scaling(both(before.rows, rows), both(before.columns, columns)))
