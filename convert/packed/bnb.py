"""bitsandbytes: 4-bit codes of a codebook (NF4 or FP4) with a scale for each block, and 8-bit integers by rows.

Layout, for a weight [out, in] (bitsandbytes, functional.py `QuantState`), 4 bits:
  weight                                  U8 [out * in / 2, 1], weight 2i in the high four bits of byte i
  weight.quant_map                        F32 [16], what the codes stand for
  weight.absmax                           F32 [blocks], the scales; or U8 [blocks] where these are quantised themselves:
  weight.nested_absmax, .nested_quant_map F32 [blocks of scales] and [256]: scale = map[code] * nested absmax + offset
  weight.quant_state.bitsandbytes__nf4    U8, JSON: shape, blocksize, nested_blocksize, nested_offset
8 bits: weight I8, SCB F32 [out]; weight = code * SCB / 127.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.packed.base import PackedTensor, Packing, Unpacked, unsupported
from llmkit.convert.packed.reader import Reader, reading, to_float32
from llmkit.convert.packed.scaled import scaled
from llmkit.errors import FormatError
from llmkit.formats.strictjson import parse_json
from llmkit.types import TensorInfo, TensorType

_STATE: Final = ".quant_state.bitsandbytes__"
_MAX_STATE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Nested:
    """Scales that are quantised themselves: codes of `levels`, in blocks of `block_size`, and what is added."""

    scales: TensorInfo
    levels: TensorInfo
    block_size: int
    offset: float


@dataclass(frozen=True, slots=True)
class BitsAndBytesTensor:
    """One 4-bit weight; blocks of `block_size` weights run on from one row to the next."""

    name: str
    shape: tuple[int, ...]
    codes: TensorInfo
    levels: TensorInfo
    scales: TensorInfo
    block_size: int
    nested: Nested | None

    @property
    def type(self) -> TensorType:
        return TensorType.F32

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        nested = () if self.nested is None else (self.nested.scales, self.nested.levels)
        return (self.codes, self.levels, self.scales, *nested)

    @property
    def rows_together(self) -> int:
        return 1

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        columns = self.shape[-1]
        begin, end = first * columns, (first + count) * columns
        # Blocks are of an even number of weights: whole ones are whole bytes.
        first_block, blocks_end = begin // self.block_size, -(-end // self.block_size)
        start, stop = first_block * self.block_size, min(blocks_end * self.block_size, prod(self.shape))
        octets = reader.run(self.codes, start // 2, -(-stop // 2) - start // 2)
        levels = to_float32(self.levels, reader.whole(self.levels))
        pairs = np.stack([np.repeat(levels, 16), np.tile(levels, 16)], axis=1).reshape(-1).view(np.float64)
        weights: NDArray[np.float32] = np.take(pairs, octets).view(np.float32)
        scales = self._scales(first_block, blocks_end - first_block, reader)
        whole = len(weights) // self.block_size
        grouped = weights[: whole * self.block_size].reshape(whole, self.block_size)
        grouped *= scales[:whole, None]
        weights[whole * self.block_size :] *= scales[-1]
        rows: NDArray[np.float32] = weights[begin - start : end - start].reshape(count, columns)
        return rows

    def _scales(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        stored = reader.run(self.scales, first, count)
        if self.nested is None:
            return to_float32(self.scales, stored)
        size = self.nested.block_size
        begin, end = first // size, -(-(first + count) // size)
        outer = to_float32(self.nested.scales, reader.run(self.nested.scales, begin, end - begin))
        levels = to_float32(self.nested.levels, reader.whole(self.nested.levels))
        scales: NDArray[np.float32] = levels[stored]
        scales *= np.repeat(outer, size)[first - begin * size :][:count]
        scales += np.float32(self.nested.offset)
        return scales


def unpack(packing: Packing) -> Unpacked:
    """Every weight of 4 bits with its state, and of 8 bits with its scales. Raises FormatError, UnsupportedError."""
    tensors: list[PackedTensor] = []
    used: set[str] = set()
    states = {name.partition(_STATE)[0]: name for name in packing.tensors if _STATE in name}
    with reading(*(packing.tensors[name] for name in states.values())) as reader:
        for name, state in states.items():
            tensor = _tensor(packing, name, packing.get(state, "U8"), reader)
            tensors.append(tensor)
            used |= {part.name for part in tensor.stored} | {state}
    for module in packing.endings(".SCB"):
        codes = packing.get(f"{module}.weight", "I8")
        scales = packing.get(f"{module}.SCB", "F32", shape=codes.shape[:1])
        _require_rows(packing, module)
        tensors.append(scaled(codes, scales, divisor=127.0))
        used |= {codes.name, scales.name, f"{module}.weight_format"}
    return Unpacked(tuple(tensors), frozenset(used))


def _tensor(packing: Packing, name: str, state: TensorInfo, reader: Reader) -> BitsAndBytesTensor:
    if state.n_elements > _MAX_STATE_BYTES:
        raise FormatError(state.path, f"{state.n_elements:,} bytes are no quantisation state", tensor=state.name)
    values = parse_json(reader.whole(state).tobytes(), state.path, what=state.name)
    if not isinstance(values, dict):
        raise FormatError(state.path, "is no JSON object", tensor=state.name)
    shape = values.get("shape")
    if not (isinstance(shape, list) and shape and all(_is_size(n) for n in shape)):
        raise FormatError(state.path, f"shape is {shape!r:.60}, expected sizes", tensor=state.name)
    n_weights = prod(shape)
    block_size = _size(values, "blocksize", state)
    if block_size % 2:
        raise FormatError(state.path, f"blocks of {block_size} codes do not fill bytes", tensor=state.name)
    n_blocks = -(-n_weights // block_size)
    codes = packing.get(name, "U8")
    if codes.n_elements != -(-n_weights // 2):
        raise FormatError(
            codes.path, f"{codes.n_elements:,} bytes do not hold {list(shape)} codes of 4 bits", tensor=name
        )
    levels = packing.get(f"{name}.quant_map", "F32", shape=(16,))
    is_nested = f"{name}.nested_absmax" in packing.tensors
    scales = packing.get(f"{name}.absmax", "U8" if is_nested else "F32", shape=(n_blocks,))
    nested = _nested(packing, name, n_blocks, values, state) if is_nested else None
    return BitsAndBytesTensor(name, tuple(shape), codes, levels, scales, block_size, nested)


def _nested(packing: Packing, name: str, n_scales: int, values: dict[str, Any], state: TensorInfo) -> Nested:
    size = _size(values, "nested_blocksize", state)
    offset = values.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not isfinite(offset):
        raise FormatError(state.path, f"nested_offset is {offset!r:.60}, expected a number", tensor=state.name)
    outer = packing.get(f"{name}.nested_absmax", "F32", shape=(-(-n_scales // size),))
    levels = packing.get(f"{name}.nested_quant_map", "F32", shape=(256,))
    return Nested(outer, levels, size, float(offset))


def _size(values: dict[str, Any], key: str, state: TensorInfo) -> int:
    found: Any = values.get(key)
    if not _is_size(found):
        raise FormatError(state.path, f"{key} is {found!r:.60}, expected a size", tensor=state.name)
    return int(found)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 2**40


def _require_rows(packing: Packing, module: str) -> None:
    """8-bit weights lie by rows, unless they were saved from a GPU in one of its own orders."""
    stored = packing.find(f"{module}.weight_format", "U8")
    if stored is None or stored.n_elements != 1:
        return
    with reading(stored) as reader:
        found = int(reader.run(stored, 0, 1)[0])
    if found:
        raise unsupported(packing.settings, f"8-bit bitsandbytes weights of {module} lie in order {found}, not by rows")
