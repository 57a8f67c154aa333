"""MXFP4 as GPT-OSS stores its experts: the bits of GGUF's MXFP4, in another order.

Layout, for experts [experts, out, in] (transformers, integrations/mxfp4.py):
  NAME_blocks  U8 [experts, out, in / 32, 16], weight 2i of a block in the low four bits of byte i, 2i + 1 in the high
  NAME_scales  U8 [experts, out, in / 32], exponents of two
GGUF's blocks have the exponent first, and weight i beside weight i + 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.base import PackedTensor, Packing, Unpacked
from llmkit.convert.packed.reader import Reader
from llmkit.errors import FormatError
from llmkit.types import TensorInfo, TensorType

_BLOCK: Final = 32
_BYTES: Final = 17  # of GGUF's block


@dataclass(frozen=True, slots=True)
class MXFP4Tensor:
    """The matrices of experts, under the name of their blocks."""

    blocks: TensorInfo
    scales: TensorInfo

    @property
    def name(self) -> str:
        return self.blocks.name

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, n_blocks = self.scales.shape
        return (*rows, n_blocks * _BLOCK)

    @property
    def type(self) -> TensorType:
        return TensorType.MXFP4

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return self.blocks, self.scales

    @property
    def rows_together(self) -> int:
        return 1

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.uint8]:
        n_blocks = self.scales.shape[-1]
        stored = reader.run(self.blocks, first * n_blocks * 16, count * n_blocks * 16).reshape(-1, 16)
        packed = np.empty((count * n_blocks, _BYTES), np.uint8)
        packed[:, 0] = reader.run(self.scales, first * n_blocks, count * n_blocks)
        low, high = stored[:, :8], stored[:, 8:]  # weights 0 to 15, and 16 to 31
        packed[:, 1::2] = low & 15 | high << 4
        packed[:, 2::2] = low >> 4 | high & 0xF0
        return packed.reshape(count, -1)


def unpack(packing: Packing) -> Unpacked:
    """Every tensor that is stored as blocks and scales. Raises FormatError."""
    tensors: list[PackedTensor] = []
    used: set[str] = set()
    for name in packing.endings("_blocks"):
        blocks = packing.get(f"{name}_blocks", "U8")
        if len(blocks.shape) < 3 or blocks.shape[-1] != 16:
            raise FormatError(
                blocks.path, f"shape {list(blocks.shape)}; MXFP4 blocks have 16 bytes", tensor=blocks.name
            )
        scales = packing.get(f"{name}_scales", "U8", shape=blocks.shape[:-1])
        tensors.append(MXFP4Tensor(blocks, scales))
        used |= {blocks.name, scales.name}
    return Unpacked(tuple(tensors), frozenset(used))
