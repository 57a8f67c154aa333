"""Rounding with feedback: later weights of a row make good what rounding the earlier ones has changed.

Where two columns of a matrix meet activations that go together, an error in one can be taken off the other. For the
mean products H of a matrix's activations, [columns, columns], the expected squared error of an output is e H e for the
errors e of its row. Columns are rounded in their order, and each error is taken off the columns that are still to come
so that this becomes smallest: off column j the share U[i, j] / U[i, i], for the upper triangular U with U^T U = H^-1.
After GPTQ (Frantar et al. 2022, arXiv:2210.17323); here H may be known within runs of `width` columns only, which has
much of the effect at a fraction of the size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError

# Shares of errors, float32 [runs, width, width]: of one column's on the others of its run. Only what is right of the
# diagonal counts. The last run may be wider than what is left of the columns.
Carry: TypeAlias = NDArray[np.float32]
# Mean products of activations, float32 [runs, width, width].
Products: TypeAlias = NDArray[np.float32]

# Of the mean square of activations, added to all: columns that are never met, or always together, stay apart.
DAMPING: Final = 0.01
_KEPT: Final = 4  # matrices whose shares are held at a time: threads are at work on two at most


class Feedback:
    """The shares for one matrix, computed from its products when they are first asked for.

    read: gives the products; it is called again if the shares were dropped meanwhile, which makes room for others.
    path, name: the file that they come from, and the tensor's name there, for messages.
    scales: float32 [columns], what the matrix's columns are multiplied by, so that activations are divided by it.
    """

    def __init__(
        self, read: Callable[[], Products], path: Path, name: str, scales: NDArray[np.float32] | None = None
    ) -> None:
        self._read = read
        self._path = path
        self._name = name
        self._scales = scales
        self._lock = Lock()

    def scaled(self, scales: NDArray[np.float32]) -> Feedback:
        """That of the matrix with its columns multiplied by `scales`, float32 [columns]."""
        both = scales if self._scales is None else self._scales * scales
        return Feedback(self._read, self._path, self._name, both)

    def carry(self) -> Carry:
        """The shares. Raises FormatError for products that no activations have, and what reading them raises."""
        with self._lock:
            return _computed(self)

    def compute(self) -> Carry:
        """The shares, computed anew."""
        products = self._read().astype(np.float64)
        if self._scales is not None:
            runs, width, _ = products.shape
            scales = np.ones(runs * width)
            scales[: len(self._scales)] = self._scales
            inverse = (1 / scales).reshape(runs, width)
            products = products * inverse[:, :, None] * inverse[:, None, :]
        try:
            return shares(products)
        except ValueError as error:
            raise FormatError(self._path, f"{error}; the file cannot be used", tensor=self._name) from error


@lru_cache(_KEPT)
def _computed(feedback: Feedback) -> Carry:
    return feedback.compute()


def shares(products: NDArray[np.float64]) -> Carry:
    """The shares that follow from mean products, float64 [runs, width, width].

    Raises ValueError if they are not those of any activations: every such matrix is symmetric and positive.
    """
    squares = np.diagonal(products, axis1=1, axis2=2)
    mean = squares.mean()
    if not (np.isfinite(products).all() and (squares >= 0).all()):
        raise ValueError("products of activations that are not finite, or negative squares")
    if mean == 0:
        return np.zeros(products.shape, np.float32)
    width = products.shape[-1]
    damped = (products + products.transpose(0, 2, 1)) / 2 + DAMPING * mean * np.eye(width)
    # For R upper triangular with R R^T = H, U is its inverse; backwards R is the usual lower triangle.
    try:
        backwards = np.linalg.cholesky(damped[:, ::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise ValueError("no activations have these products") from error
    upper = np.linalg.inv(backwards[:, ::-1, ::-1])
    found = np.triu(upper / np.diagonal(upper, axis1=1, axis2=2)[:, :, None], 1)
    return np.ascontiguousarray(found, np.float32)


def covers(carry: Carry, columns: int) -> bool:
    """Whether shares are those of a matrix of so many columns."""
    if carry.ndim != 3 or carry.dtype != np.float32 or not carry.flags.c_contiguous:
        return False
    runs, width, other = carry.shape
    return bool(width == other > 0) and (runs - 1) * width < columns <= runs * width
