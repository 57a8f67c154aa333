"""Tables of sines and cosines, by which graphs rotate queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs import HParams
from llmkit.convert.packed.reader import Reader
from llmkit.convert.rotary import Rotation, rotations
from llmkit.types import TensorInfo, TensorType

ROTARY: Final = "rotary"
SLIDING_ROTARY: Final = "rotary.sliding"


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosines or sines of every position, [positions, rotated dimensions / 2]: a `PackedTensor` that no file has.

    Of several rotations the second one's positions follow the first one's.
    """

    name: str
    rotations: tuple[Rotation, ...] = field(compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return sum(rotation.positions for rotation in self.rotations), len(self.rotations[0].frequencies)

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return ()

    @property
    def rows_together(self) -> int:
        return 1

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        found = []
        for rotation in self.rotations:
            begin, end = max(first, 0), min(first + count, rotation.positions)
            if begin < end:
                found.append(self._values(rotation, begin, end))
            first -= rotation.positions
        return np.concatenate(found)

    def _values(self, rotation: Rotation, begin: int, end: int) -> NDArray[np.float32]:
        # In float32 throughout, as transformers does: then the angles of late positions are rounded alike.
        angles = np.arange(begin, end, dtype=np.float32)[:, None] * rotation.frequencies
        function = np.cos if self.name.endswith("cos") else np.sin
        values: NDArray[np.float32] = (function(angles) * np.float32(rotation.scale)).astype(np.float32)
        return values


def rotary_tables(h: HParams, n_positions: int) -> list[RotaryTable]:
    """The tables that a model rotates by, for so many positions: `rotary.cos` and `rotary.sin`, and others where
    blocks with a sliding window have their own."""
    return [
        RotaryTable(f"{name}.{function}", found)
        for name, rope in ((ROTARY, h.rope), (SLIDING_ROTARY, h.sliding_rope))
        if rope is not None
        for found in [_within(rotations(rope, h.head_dim, h.n_context), n_positions)]
        for function in ("cos", "sin")
    ]


def short_positions(h: HParams, n_positions: int) -> int | None:
    """How many tokens LongRoPE's rotation of short texts is for, where texts may be longer than that."""
    found = () if h.rope is None else _within(rotations(h.rope, h.head_dim, h.n_context), n_positions)
    return found[0].positions if len(found) > 1 else None


def _within(found: Sequence[Rotation], n_positions: int) -> tuple[Rotation, ...]:
    """The rotations that texts of at most so many tokens need, no longer than that."""
    if len(found) > 1 and n_positions <= found[0].positions:
        found = found[:1]
    return tuple(replace(rotation, positions=min(rotation.positions, n_positions)) for rotation in found)
