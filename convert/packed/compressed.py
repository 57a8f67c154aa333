"""compressed-tensors, the format of LLM Compressor and of many checkpoints for vLLM.

Layouts, for a weight [out, in] (compressed_tensors/compressors):
  pack-quantized   weight_packed I32 [out, in * bits / 32], codes of 4 or 8 bits, lowest bits first; weight_shape;
                   weight_scale [out, groups or 1]; weight_zero_point, if not symmetric, packed down its columns as
                   I32 [out * bits / 32, groups] or I8 as it is; weight_g_idx [in], if groups do not follow one another
  int-quantized, float-quantized, naive-quantized
                   weight I8 or F8_E4M3; weight_scale [1], [out, 1], [out, groups] or [blocks, blocks];
                   weight_zero_point I8 of the same shape, if not symmetric
Codes are stored unsigned, with 2**(bits - 1) added; so are packed zero points. weight = (code - zero) * scale.
Sizes of groups and widths of codes may differ by module: they follow from the tensors' shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs.config import excerpt
from llmkit.convert.packed.base import FLOATS, PackedTensor, Packing, Unpacked, unsupported
from llmkit.convert.packed.bits import Floats, apply_groups, codes_of
from llmkit.convert.packed.fp8 import activation_scales
from llmkit.convert.packed.reader import Reader, reading, to_float32
from llmkit.convert.packed.scaled import CODES, scaled
from llmkit.errors import FormatError
from llmkit.types import TensorInfo, TensorType

_PACKED: Final = "pack-quantized"
_PLAIN: Final = ("int-quantized", "float-quantized", "naive-quantized", "dense")
_BITS: Final = (4, 8)


@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """One weight of `pack-quantized`. `groups` (g_idx) tells the group of each input, if they are in no order."""

    name: str
    shape: tuple[int, ...]
    codes: TensorInfo
    scales: TensorInfo
    zeros: TensorInfo | None
    groups: TensorInfo | None
    bits: int

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        found = (self.codes, self.scales, self.zeros, self.groups)
        return tuple(tensor for tensor in found if tensor is not None)

    @property
    def rows_together(self) -> int:
        return 1

    def read_rows(self, first: int, count: int, reader: Reader) -> Floats:
        codes = codes_of(reader.rows(self.codes, first, count), self.bits)[:, : self.shape[1]]
        scales = to_float32(self.scales, reader.rows(self.scales, first, count))
        return apply_groups(codes, scales, self._zeros(first, count, reader), self._groups(reader))

    def _zeros(self, first: int, count: int, reader: Reader) -> Floats:
        """Zero points of a run of rows, in terms of the unsigned codes, [count, groups]."""
        middle = np.float32(1 << (self.bits - 1))
        if self.zeros is None:
            return np.full((count, self.scales.shape[1]), middle)
        if self.zeros.dtype == "I8":
            return reader.rows(self.zeros, first, count).astype(np.float32) + middle
        per_word = 32 // self.bits
        begin, end = first // per_word, -(-(first + count) // per_word)
        codes = codes_of(reader.rows(self.zeros, begin, end - begin).T, self.bits)
        return codes[:, first - begin * per_word :][:, :count].T.astype(np.float32)

    def _groups(self, reader: Reader) -> NDArray[np.integer] | int:
        """The group of each input, or the size of groups that follow one another."""
        if self.groups is None:
            return self.shape[1] // self.scales.shape[1]
        found: NDArray[np.integer] = reader.whole(self.groups)
        n_groups = self.scales.shape[1]
        if not (found.min() >= 0 and found.max() < n_groups):
            raise FormatError(
                self.groups.path,
                f"names groups {found.min()} to {found.max()}; there are {n_groups}",
                tensor=self.groups.name,
            )
        return found


def unpack(packing: Packing) -> Unpacked:
    """Every weight with scales beside it. Raises FormatError, UnsupportedError for formats that are not known."""
    settings = packing.settings
    _check_formats(packing)
    if settings.object("sparsity_config").get("format", "dense") != "dense":
        raise unsupported(settings, f"sparse compressed-tensors ({excerpt(settings.object('sparsity_config'))})")
    block = _block_structure(packing)
    tensors: list[PackedTensor] = []
    used = set(activation_scales(packing))
    with reading(
        *(packing.tensors[f"{name}_shape"] for name in packing.endings("_packed") if f"{name}_shape" in packing.tensors)
    ) as reader:
        for name in packing.endings(".weight_packed"):
            packed = _packed(packing, f"{name}.weight", reader)
            tensors.append(packed)
            used |= {part.name for part in packed.stored} | {f"{packed.name}_shape"}
    for name in packing.endings("_scale"):
        codes = packing.tensors.get(name)
        if codes is None or codes.dtype not in CODES:
            continue
        zeros = packing.find(f"{name}_zero_point", "I8")
        tensor = scaled(codes, packing.get(f"{name}_scale", *FLOATS), block=block, zeros=zeros)
        tensors.append(tensor)
        used |= {part.name for part in tensor.stored}
    return Unpacked(tuple(tensors), frozenset(used))


def _check_formats(packing: Packing) -> None:
    """Raise UnsupportedError for a format, of the checkpoint or of a group of modules, that is not read."""
    settings = packing.settings
    stated = [settings.values.get("format"), *(group.get("format") for group in _groups_of(packing))]
    for name in stated:
        if name not in (None, "mixed-precision", _PACKED, *_PLAIN):
            known = ", ".join((_PACKED, *_PLAIN))
            raise unsupported(settings, f"compressed-tensors format {excerpt(name)} is not read, only {known}")


def _groups_of(packing: Packing) -> Iterator[dict[str, Any]]:
    """The schemes for groups of modules."""
    for group in packing.settings.object("config_groups").values():
        if isinstance(group, dict):
            yield group


def _weights_of(packing: Packing) -> Iterator[dict[str, Any]]:
    """What the schemes say of weights."""
    for group in _groups_of(packing):
        weights = group.get("weights")
        if isinstance(weights, dict):
            yield weights


def _block_structure(packing: Packing) -> tuple[int, int] | None:
    """The size of the blocks that have a scale each: [rows, columns], or "128x128" in older configs."""
    for weights in _weights_of(packing):
        found = weights.get("block_structure")
        parts = [int(n) for n in found.split("x") if n.isdecimal()] if isinstance(found, str) else found
        if isinstance(parts, list) and len(parts) == 2 and all(type(n) is int and 0 < n < 2**31 for n in parts):
            return parts[0], parts[1]
    return None


def _packed(packing: Packing, name: str, reader: Reader) -> PackedIntegers:
    codes = packing.get(f"{name}_packed", "I32")
    shape = _shape(packing.get(f"{name}_shape", "I64", "I32", shape=(2,)), reader)
    n_out, n_in = shape
    widths = {weights.get("num_bits") for weights in _weights_of(packing)}
    unknown = [excerpt(bits) for bits in widths if bits not in _BITS]
    fitting = [bits for bits in _BITS if bits in widths and codes.shape == (n_out, -(-n_in // (32 // bits)))]
    if not fitting and unknown:
        raise unsupported(
            packing.settings, f"{_PACKED} weights with num_bits {', '.join(unknown)} are not read, only 4, 8"
        )
    if len(fitting) != 1:
        raise FormatError(
            codes.path,
            f"shape {list(codes.shape)} does not hold {list(shape)} codes of the widths that config.json states",
            tensor=codes.name,
        )
    bits = fitting[0]
    scales = packing.get(f"{name}_scale", *FLOATS)
    if len(scales.shape) != 2 or scales.shape[0] != n_out or not scales.shape[1]:
        raise FormatError(scales.path, f"shape {list(scales.shape)}; expected [{n_out}, groups]", tensor=scales.name)
    groups = packing.find(f"{name}_g_idx", "I32", "I64", shape=(n_in,))
    if groups is None and n_in % scales.shape[1]:
        raise FormatError(
            scales.path, f"{scales.shape[1]} groups do not divide rows of {n_in} weights", tensor=scales.name
        )
    zeros = packing.find(f"{name}_zero_point", "I32", "I8")
    if zeros is not None:
        n_stored = n_out if zeros.dtype == "I8" else -(-n_out // (32 // bits))
        zeros = packing.get(zeros.name, shape=(n_stored, scales.shape[1]))
    return PackedIntegers(name, shape, codes, scales, zeros, groups, bits)


def _shape(tensor: TensorInfo, reader: Reader) -> tuple[int, int]:
    rows, columns = (int(n) for n in reader.whole(tensor))
    if rows < 1 or columns < 1:
        raise FormatError(tensor.path, f"says the weights have shape {[rows, columns]}", tensor=tensor.name)
    return rows, columns
