"""Sums of squared activations per column, as llama-imatrix adds them up (llama.cpp, tools/imatrix/imatrix.cpp).

All sums are float32 and every row is added in its turn, so that the same activations give the same bits as there.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 64  # rows squared at a time: they stay in the cache


class SquareSums:
    """What one tensor's activations add up to.

    sums: of squares, float32 [matrices, columns]. counts: rows added, int64 [matrices].
    """

    def __init__(self, n_matrices: int, n_columns: int) -> None:
        self.sums = np.zeros((n_matrices, n_columns), np.float32)
        self.counts = np.zeros(n_matrices, np.int64)

    def add(self, rows: NDArray[np.float32], stack: tuple[int, int]) -> None:
        """Add what a plain product multiplies: float32 [a, b, rows, columns].

        `stack` is how the matrices are arranged, [a', b'] (slowest first); activations of more slices than there are
        matrices wrap around. Every matrix is counted with its share of the rows.
        """
        for a, slices in enumerate(rows):
            for b, slice in enumerate(slices):
                add_squares(self.sums[a % stack[0] * stack[1] + b % stack[1]], slice)
        n_slices, n_rows = rows.shape[0] * rows.shape[1], rows.shape[2]
        self.counts += n_slices * n_rows // len(self.counts)

    def add_routed(self, rows: NDArray[np.float32], ids: NDArray[np.int32]) -> None:
        """Add what experts multiply: float32 [tokens, slots, columns], each token's experts int32 [tokens, chosen].

        With fewer slots than chosen experts, these share the slots in turn. Tokens are taken choice by choice.
        """
        n_tokens, n_slots = rows.shape[:2]
        chosen = ids.T.ravel()
        order = np.argsort(chosen, kind="stable")
        ends = np.cumsum(np.bincount(chosen, minlength=len(self.counts)))
        for expert, end in enumerate(ends):
            start = ends[expert - 1] if expert else 0
            choice, token = np.divmod(order[start:end], n_tokens)
            add_squares(self.sums[expert], rows[token, choice % n_slots])
            self.counts[expert] += end - start


def add_squares(sums: NDArray[np.float32], rows: NDArray[np.float32]) -> None:
    """Add the squares of `rows`, float32 [n, columns], to `sums`, float32 [columns], row after row.

    What overflows becomes infinite, without a warning: the caller looks for that.
    """
    squares = np.empty((_BLOCK + 1, len(sums)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            squares[0] = sums
            np.multiply(block, block, out=squares[1 : len(block) + 1])
            # Along the slow axis NumPy adds whole rows in turn; only along the fast one does it add pairwise.
            np.add.reduce(squares[: len(block) + 1], axis=0, out=sums)
