"""Lanes of weights that are looked up in a codebook, and their signs.

A codebook is an int8 array of entries of eight or of four values, one after the other. Sixteen lanes take two entries
of eight or four of four. Nothing checks bounds: an index comes from so few bits that every one is an entry.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from llmkit.kernels.intlanes import I32X16, bits_of, from_bits, mask_from_bits, select_int, splat_int
from llmkit.kernels.jit import helper, source
from llmkit.kernels.lanes import LANES

CODEBOOK: Final = source(types.int8)

_BYTE: Final = ir.IntType(8)
_WORDS: Final = ir.VectorType(ir.IntType(32), LANES)


def _is_codebook(array: types.Type) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.int8 and array.ndim == 1 and array.layout == "C"


def _joined(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """Both vectors, one after the other."""
    order = list(range(2 * left.type.count))
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


def _entries(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    """Lanes from the entries args[1:] of the codebook args[0], as many values of each as fill the lanes."""
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    length = LANES // (len(args) - 1)
    entry = ir.VectorType(_BYTE, length)
    parts = []
    for index, index_type in zip(args[1:], sig.args[1:], strict=True):
        position = builder.mul(
            context.cast(builder, index, index_type, types.intp), context.get_constant(types.intp, length)
        )
        parts.append(builder.load(builder.bitcast(builder.gep(data, [position]), entry.as_pointer()), align=1))
    while len(parts) > 1:
        parts = [_joined(builder, *parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return builder.sext(parts[0], _WORDS)


@intrinsic
def two_entries(typingctx, codebook, first, second):  # type: ignore[no-untyped-def]
    """Int32 lanes: codebook[8 * first :][:8], then codebook[8 * second :][:8]."""
    return (I32X16(codebook, first, second), _entries) if _is_codebook(codebook) else None


@intrinsic
def four_entries(typingctx, codebook, first, second, third, fourth):  # type: ignore[no-untyped-def]
    """Int32 lanes: four values from each of codebook[4 * first :], codebook[4 * second :] and so on."""
    return (I32X16(codebook, first, second, third, fourth), _entries) if _is_codebook(codebook) else None


@helper
def negated_where(lanes: Any, bits: Any) -> Any:
    """Float32 lanes, lane i negated where bit i is set."""
    return from_bits(bits_of(lanes) ^ select_int(mask_from_bits(bits), splat_int(-0x80000000), splat_int(0)))


@helper
def with_parity(word: Any) -> Any:
    """32 signs from 28 bits: each seven bits get an eighth that makes the number of bits set even."""
    signs = (word & 0x7F) | (word & 0x3F80) << 1 | (word & 0x1FC000) << 2 | (word & 0xFE00000) << 3
    # The lowest bit of each byte becomes the parity of the byte; what crosses from byte to byte lands in other bits.
    parity = signs ^ (signs >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    return signs | (parity & 0x01010101) << 7
