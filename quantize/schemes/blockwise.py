"""The blockwise forms of ONNX Runtime as schemes: several arrays for one matrix.

Encoded rows hold, of all rows of a call, first the codes, then the scales, then the zero points, each as a file has
them; so where a file has them apart, each is one run of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmkit.quantize.blockwise import BlockwiseFormat, Codes, Scales, ZeroPoints
from llmkit.quantize.feedback import Carry
from llmkit.quantize.schemes.base import Importance, Packed, Rows


@dataclass(frozen=True, slots=True)
class BlockwiseScheme:
    """`encode` and `decode` of a blockwise form, with the arguments that they have in `Scheme`."""

    type: BlockwiseFormat

    def encode(self, rows: Rows, out: Packed, importance: Importance | None = None, carry: Carry | None = None) -> None:
        """Encode float32 [n, columns] to uint8 [n, row_bytes(columns)]; see above for what lies where.

        Scales of 4-bit codes are searched for, and errors carried on; with 8 bits that changes next to nothing.
        """
        arrays = self._arrays(out, rows.shape[1])
        if self.type.bits == 4:
            self.type.encode_searched(rows, *arrays, importance=importance, carry=carry)
        else:
            self.type.encode(rows, *arrays)

    def decode(self, packed: Packed, out: Rows) -> None:
        """Decode what `encode` wrote in one call to float32 [n, columns]."""
        self.type.decode(*self._arrays(packed, out.shape[1]), out)

    def row_bytes(self, columns: int) -> int:
        """Bytes of one encoded row in all."""
        return sum(self.type.widths(columns))

    def has_finite_scales(self, packed: Packed, columns: int) -> bool:
        """Whether the scales of what `encode` wrote are finite."""
        return bool(np.isfinite(self._arrays(packed, columns)[1]).all())

    def _arrays(self, packed: Packed, columns: int) -> tuple[Codes, Scales, ZeroPoints | None]:
        """Views of the arrays in `packed`, uint8 [n, row_bytes], which lies contiguously in memory."""
        n = len(packed)
        flat = packed.reshape(-1)
        ends = np.cumsum([n * width for width in self.type.widths(columns)]).tolist()
        codes, scales, *zero_points = np.split(flat, ends[:-1])
        floats: Scales = scales.view(np.float16) if self.type.half_scales else scales.view(np.float32)
        return (
            codes.reshape(self.type.codes_shape(n, columns)),
            floats.reshape(self.type.scales_shape(n, columns)),
            zero_points[0].reshape(self.type.zero_points_shape(n, columns)) if zero_points else None,
        )
