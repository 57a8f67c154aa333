"""GPTQ: codes of 2, 3, 4 or 8 bits, packed down the input dimension, with a scale and a zero point for each group.

Layout, for a weight [out, in] (AutoGPTQ's and GPTQModel's qlinear modules):
  qweight  I32 [in * bits / 32, out]      the codes of each output in one column
  scales   F16 [groups, out]
  qzeros   I32 [groups, out * bits / 32]  the zero points of each group in one row
  g_idx    I32 [in]                       the group of each input; without it groups follow one another
weight[o, i] = scales[g, o] * (code - zero[g, o]) with g the group of i. Format "gptq" stores zero - 1, "gptq_v2" zero.

How the 1 is subtracted matters where a zero point is 0. GPTQModel subtracts from whole words, so that one code borrows
from the next, and adds to whole words when it reads (utils/model.py, `convert_gptq_v1_to_v2_format_module`); so it is
done here. For 3 bits it takes the constants of three words in another order than that of their codes, which only its
own files must undo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs.config import excerpt
from llmkit.convert.packed.base import FLOATS, PackedTensor, Packing, Unpacked, unsupported
from llmkit.convert.packed.bits import Floats, apply_groups, codes_of
from llmkit.convert.packed.reader import Reader, to_float32
from llmkit.errors import FormatError
from llmkit.types import TensorInfo, TensorType

_BITS: Final = (2, 3, 4, 8)
_FORMATS: Final = ("gptq", "gptq_v2")
# By bits: a 1 in each code of a word. GPTQModel's for 3 bits are for three words in turn, and not where codes begin.
_ONES: Final = {2: (0x55555555,), 4: (0x11111111,), 8: (0x01010101,)}
_ONES_OF_GPTQMODEL: Final = {**_ONES, 3: (0x24924924, 0x92492492, 0x49249249)}


@dataclass(frozen=True, slots=True)
class GPTQTensor:
    """One weight. `groups` (g_idx) tells the group of each input, else groups of `group_size` follow one another.

    Zero points are what is stored plus `added_to_words`, for the words of a row in turn, plus `added_to_zeros`.
    """

    name: str
    codes: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo
    groups: TensorInfo | None
    bits: int
    group_size: int
    added_to_words: tuple[int, ...]
    added_to_zeros: int

    @property
    def shape(self) -> tuple[int, ...]:
        n_words, n_out = self.codes.shape
        return n_out, n_words * 32 // self.bits

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        found = (self.codes, self.scales, self.zeros, self.groups)
        return tuple(tensor for tensor in found if tensor is not None)

    @property
    def rows_together(self) -> int:
        return 128  # 512 bytes of each row of codes

    def read_rows(self, first: int, count: int, reader: Reader) -> Floats:
        codes = codes_of(reader.columns(self.codes, first, count).T, self.bits)
        scales = to_float32(self.scales, reader.columns(self.scales, first, count).T)
        return apply_groups(codes, scales, self._zeros(first, count, reader), self._groups(reader))

    def _zeros(self, first: int, count: int, reader: Reader) -> Floats:
        """The zero points of a run of outputs, [count, groups]."""
        together = 32 if self.bits == 3 else 32 // self.bits  # codes that end where a word does
        begin, end = first // together, -(-(first + count) // together)
        n_words = together * self.bits // 32
        words = reader.columns(self.zeros, begin * n_words, (end - begin) * n_words).view(np.uint32)
        if self.added_to_words:
            words += np.resize(np.array(self.added_to_words, np.uint32), words.shape[1])
        found = codes_of(words.view(np.int32), self.bits)[:, first - begin * together :][:, :count].T
        return (found + np.uint8(self.added_to_zeros) & np.uint8((1 << self.bits) - 1)).astype(np.float32)

    def _groups(self, reader: Reader) -> NDArray[np.integer] | int:
        """The group of each input, or the size of groups that follow one another."""
        if self.groups is None:
            return self.group_size
        found: NDArray[np.integer] = reader.whole(self.groups)
        n_groups = self.scales.shape[0]
        if found.size and not (found.min() >= 0 and found.max() < n_groups):
            raise FormatError(
                self.groups.path,
                f"names groups {found.min()} to {found.max()}; there are {n_groups}",
                tensor=self.groups.name,
            )
        in_order = np.array_equal(found, np.arange(found.size) // self.group_size)
        return self.group_size if in_order else found


def unpack(packing: Packing) -> Unpacked:
    """Every weight that is stored as qweight, qzeros and scales. Raises FormatError, UnsupportedError."""
    settings = packing.settings
    name = settings.values.get("checkpoint_format") or "gptq"
    if name not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise unsupported(settings, f"GPTQ with checkpoint_format {excerpt(name)} is not read, only {known}")
    bits = settings.integer("bits")
    if bits not in _BITS:
        raise unsupported(settings, f"GPTQ with bits {bits} is not read, only {', '.join(map(str, _BITS))}")
    tensors: list[PackedTensor] = []
    used: set[str] = set()
    for module in packing.endings(".qweight"):
        tensor = _tensor(packing, module, bits, name)
        tensors.append(tensor)
        used |= {part.name for part in tensor.stored}
        used.add(f"{module}.g_idx")
    return Unpacked(tuple(tensors), frozenset(used))


def _tensor(packing: Packing, module: str, bits: int, format: str) -> GPTQTensor:
    codes = packing.get(f"{module}.qweight", "I32")
    if len(codes.shape) != 2:
        raise FormatError(codes.path, f"shape {list(codes.shape)}; packed weights are matrices", tensor=codes.name)
    n_words, n_out = codes.shape
    groups = packing.find(f"{module}.g_idx", "I32", "I64")
    if groups is not None and groups.n_elements:
        bits = _bits_of(codes, groups)  # GPTQModel's `dynamic` gives modules bits of their own
    if n_words * 32 % bits or (bits == 3 and n_words % 3):
        raise FormatError(codes.path, f"{n_words} words do not hold whole codes of {bits} bits", tensor=codes.name)
    n_in = n_words * 32 // bits
    scales = packing.get(f"{module}.scales", *FLOATS)
    stated = packing.settings.values.get("group_size")
    group_size = stated if type(stated) is int and 0 < stated < n_in else n_in
    n_expected = -(-n_in // group_size)
    if scales.shape != (n_expected, n_out):
        raise FormatError(
            scales.path,
            f"shape {list(scales.shape)}; groups of {group_size} of {n_in} inputs make it [{n_expected}, {n_out}]",
            tensor=scales.name,
        )
    zeros = packing.get(f"{module}.qzeros", "I32", shape=(n_expected, -(-n_out * bits // 32)))
    words = (_ONES_OF_GPTQMODEL if _is_of_gptqmodel(packing) else _ONES).get(bits, ()) if format == "gptq" else ()
    added = 1 if format == "gptq" and not words else 0
    return GPTQTensor(f"{module}.weight", codes, scales, zeros, groups, bits, group_size, words, added)


def _is_of_gptqmodel(packing: Packing) -> bool:
    """Whether the config names GPTQModel as what wrote the checkpoint, such as "gptqmodel:2.2.0"."""
    found = packing.settings.object("meta").get("quantizer")
    names = found if isinstance(found, list) else [found]
    return any(str(name).lower().startswith("gptqmodel") for name in names)


def _bits_of(codes: TensorInfo, groups: TensorInfo) -> int:
    """The bits of a code, from how many inputs the words hold."""
    n_bits = codes.shape[0] * 32
    bits, rest = divmod(n_bits, groups.n_elements)
    if rest or bits not in _BITS or len(groups.shape) != 1:
        raise FormatError(
            codes.path,
            f"{codes.shape[0]} words of 32 bits for each of {groups.n_elements} inputs, which makes no code of "
            f"{', '.join(map(str, _BITS))} bits",
            tensor=codes.name,
        )
    return bits
