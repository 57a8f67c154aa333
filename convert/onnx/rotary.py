"""Tables of sines and cosines, which ONNX Runtime's operators rotate queries and keys by."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.reader import Reader
from llmkit.convert.rotary import Rotation
from llmkit.types import TensorInfo, TensorType


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
