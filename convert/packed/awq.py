"""AWQ in the packing of AutoAWQ's GEMM kernels: codes of 4 bits, packed along the output dimension.

Layout, for a weight [out, in] (AutoAWQ, awq/modules/linear/gemm.py):
  qweight  I32 [in, out / 8]      each word has the codes of 8 outputs, in the order 0 2 4 6 1 3 5 7
  qzeros   I32 [groups, out / 8]  the zero points, packed likewise
  scales   F16 [groups, out]
weight[o, i] = scales[g, o] * (code - zero[g, o]) with g = i / group_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from llmkit.convert.archs.config import excerpt
from llmkit.convert.packed.base import FLOATS, PackedTensor, Packing, Unpacked, unsupported
from llmkit.convert.packed.bits import Codes, Floats, apply_groups
from llmkit.convert.packed.reader import Reader, to_float32
from llmkit.errors import FormatError
from llmkit.types import TensorInfo, TensorType

_PER_WORD: Final = 8
# The four bits of a word, counted from the lowest, that hold output 0, 1, ... 7.
_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
# Versions of the format that differ in their kernels only.
_VERSIONS: Final = ("gemm", "exllama", "ipex")


@dataclass(frozen=True, slots=True)
class AWQTensor:
    """One weight."""

    name: str
    codes: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo
    group_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        n_in, n_words = self.codes.shape
        return n_words * _PER_WORD, n_in

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        return self.codes, self.scales, self.zeros

    @property
    def rows_together(self) -> int:
        return 256  # 128 bytes of each row of codes

    def read_rows(self, first: int, count: int, reader: Reader) -> Floats:
        codes = self._codes(self.codes, first, count, reader)
        zeros = self._codes(self.zeros, first, count, reader).astype(np.float32)
        scales = to_float32(self.scales, reader.columns(self.scales, first, count).T)
        return apply_groups(codes, scales, zeros, self.group_size)

    def _codes(self, tensor: TensorInfo, first: int, count: int, reader: Reader) -> Codes:
        """Codes of a run of outputs, [count, stored rows]."""
        begin, end = first // _PER_WORD, -(-(first + count) // _PER_WORD)
        words = np.ascontiguousarray(reader.columns(tensor, begin, end - begin).T).view(np.uint32)
        codes = np.empty((len(words), _PER_WORD, words.shape[1]), np.uint8)
        for output, place in enumerate(_PLACES):
            codes[:, output] = words >> np.uint32(4 * place) & np.uint32(15)
        return codes.reshape(-1, words.shape[1])[first - begin * _PER_WORD :][:count]


def unpack(packing: Packing) -> Unpacked:
    """Every weight that is stored as qweight, qzeros and scales. Raises FormatError, UnsupportedError."""
    settings = packing.settings
    version = str(settings.values.get("version") or "gemm").lower()
    if version not in _VERSIONS:
        raise unsupported(settings, f"AWQ version {excerpt(version)} is not read, only {', '.join(_VERSIONS)}")
    if settings.integer("bits", 4) != 4:
        raise unsupported(settings, f"AWQ with bits {settings.integer('bits')} is not read, only 4")
    if not settings.boolean("zero_point", True):
        raise unsupported(settings, "AWQ without zero points is not read")
    tensors: list[PackedTensor] = []
    used: set[str] = set()
    for module in packing.endings(".qweight"):
        tensor = _tensor(packing, module)
        tensors.append(tensor)
        used |= {part.name for part in tensor.stored}
    return Unpacked(tuple(tensors), frozenset(used))


def _tensor(packing: Packing, module: str) -> AWQTensor:
    codes = packing.get(f"{module}.qweight", "I32")
    if len(codes.shape) != 2:
        raise FormatError(codes.path, f"shape {list(codes.shape)}; packed weights are matrices", tensor=codes.name)
    n_in, n_words = codes.shape
    stated = packing.settings.values.get("group_size", 128)
    group_size = stated if type(stated) is int and 0 < stated < n_in else n_in
    n_groups = -(-n_in // group_size)
    scales = packing.get(f"{module}.scales", *FLOATS, shape=(n_groups, n_words * _PER_WORD))
    zeros = packing.get(f"{module}.qzeros", "I32", shape=(n_groups, n_words))
    return AWQTensor(f"{module}.weight", codes, scales, zeros, group_size)
