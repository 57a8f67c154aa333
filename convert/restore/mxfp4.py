"""Experts in MXFP4 back to where GPT-OSS stores them: the bits of GGUF's blocks, in the order of the checkpoint's.

`llmkit.convert.packed.mxfp4` has both layouts, and reads the other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs import HParams, Source, TensorRule
from llmkit.convert.packed.reader import Reader
from llmkit.convert.transforms import View
from llmkit.types import BLOCK_LAYOUTS, CopiedType, TensorInfo, TensorType

# What config.json says of such a checkpoint; the modules are those of GPT-OSS, the only family that has it.
SETTINGS: Final[dict[str, Any]] = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
_BLOCKS, _SCALES = "_blocks", "_scales"  # how their names end
_BLOCK, _BYTES = BLOCK_LAYOUTS[TensorType.MXFP4]


def source_of_blocks(rule: TensorRule) -> Source | None:
    """Where checkpoints have the tensor in MXFP4, of families whose checkpoints may."""
    return next((source for source in rule.sources if source.pattern.endswith(_BLOCKS)), None)


def scales_of(name: str) -> str:
    """The name of the scales beside the blocks of this name."""
    return name.removesuffix(_BLOCKS) + _SCALES


def first_row(source: Source, hparams: HParams) -> int:
    """Which of the checkpoint's rows is the first that the tensor has; the next ones are evenly apart."""
    if source.stored is None or source.view is None:
        return 0
    whole = View.of(source.stored(hparams))
    view = source.view(hparams, whole)
    first = view[0] if isinstance(view, tuple) else view
    return first.offset // whole.shape[-1]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The blocks [experts, rows, columns / 32] of experts whose rows alternate between `tensors`."""

    tensors: tuple[TensorInfo, ...]

    @property
    def name(self) -> str:
        return self.tensors[0].name

    @property
    def type(self) -> CopiedType:
        return CopiedType.U8

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return self.tensors

    @property
    def rows_together(self) -> int:
        return 1

    @property
    def n_blocks(self) -> tuple[int, ...]:
        *experts, rows, columns = self.tensors[0].shape
        return (*experts, rows * len(self.tensors), columns // _BLOCK)

    def read_blocks(self, first: int, count: int, reader: Reader) -> NDArray[np.uint8]:
        """GGUF's blocks from number `first` on, uint8 [count, 17]."""
        width, step = self.n_blocks[-1], len(self.tensors)
        begin, end = first // width, -(-(first + count) // width)
        rows = np.empty((end - begin, width, _BYTES), np.uint8)
        for place, tensor in enumerate(self.tensors):
            ours = range(begin + (place - begin) % step, end, step)
            if ours:
                packed = reader.bytes(tensor, ours[0] // step * width * _BYTES, len(ours) * width * _BYTES)
                rows[ours[0] - begin :: step] = packed.reshape(-1, width, _BYTES)
        start = first - begin * width
        return rows.reshape(-1, _BYTES)[start : start + count]


class BlocksOf(_Rows):
    """Their codes, [experts, rows, columns / 32, 16]: a `llmkit.convert.packed.PackedTensor` of bytes."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.n_blocks, 16)

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.uint8]:
        codes = self.read_blocks(first, count, reader)[:, 1:]
        # Weight i lies beside weight i + 16 here, and beside its neighbour there.
        low, high = codes & 15, codes >> 4
        return np.concatenate([half[:, ::2] | half[:, 1::2] << 4 for half in (low, high)], axis=1)


class ScalesOf(_Rows):
    """Their exponents, [experts, rows, columns / 32]: a `llmkit.convert.packed.PackedTensor` of bytes."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.n_blocks

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.uint8]:
        width = self.n_blocks[-1]
        return np.ascontiguousarray(self.read_blocks(first * width, count * width, reader)[:, 0]).reshape(count, width)
