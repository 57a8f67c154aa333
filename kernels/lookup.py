"""Looking up sixteen lanes in a table of sixteen entries that is held in lanes itself.

LLVM has no shuffle by indices that are known only at run time, so this takes the processor's own instruction where
there is one: `vpermps` of AVX-512, or that of AVX2 on both halves of the table. Elsewhere the table goes to memory.
The entries are copied, so the bits are the same everywhere.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from llmkit.kernels.intlanes import I32X16
from llmkit.kernels.lanes import F32X16, LANES

_WORD: Final = ir.IntType(32)
_HALF: Final = LANES // 2


def _vector(element: ir.Type, length: int) -> ir.VectorType:
    return ir.VectorType(element, length)


def _part(builder: ir.IRBuilder, lanes: ir.Value, first: int) -> ir.Value:
    """Eight lanes from `first` on."""
    order = ir.Constant(_vector(_WORD, _HALF), list(range(first, first + _HALF)))
    return builder.shuffle_vector(lanes, lanes, order)


def _permute(builder: ir.IRBuilder, name: str, table: ir.Value, index: ir.Value) -> ir.Value:
    """Call the instruction `name`: lane i is lane index[i] of the table, whose length is that of the index."""
    function_type = ir.FunctionType(table.type, [table.type, index.type])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), (table, index))


def _with_avx512(builder: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    return _permute(builder, "llvm.x86.avx512.permvar.sf.512", table, index)


def _with_avx2(builder: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    low_entries, high_entries = _part(builder, table, 0), _part(builder, table, _HALF)
    parts = []
    for first in (0, _HALF):
        at = _part(builder, index, first)
        # The instruction reads three bits of an index; the fourth, moved to the sign, chooses between its results.
        in_high = builder.icmp_signed(
            "<", builder.shl(at, ir.Constant(at.type, [28] * _HALF)), ir.Constant(at.type, [0] * _HALF)
        )
        low, high = (_permute(builder, "llvm.x86.avx2.permps", half, at) for half in (low_entries, high_entries))
        parts.append(builder.select(in_high, high, low))
    return builder.shuffle_vector(*parts, ir.Constant(_vector(_WORD, LANES), list(range(LANES))))


def _through_memory(builder: ir.IRBuilder, table: ir.Value, index: ir.Value) -> ir.Value:
    address = cgutils.alloca_once(builder, table.type)
    builder.store(table, address, align=4)
    entries = builder.bitcast(address, table.type.element.as_pointer())
    index = builder.and_(index, ir.Constant(index.type, [LANES - 1] * LANES))
    found = ir.Constant(table.type, ir.Undefined)
    for lane in range(LANES):
        position = ir.Constant(_WORD, lane)
        entry = builder.load(builder.gep(entries, [builder.extract_element(index, position)]), align=4)
        found = builder.insert_element(found, entry, position)
    return found


@intrinsic
def lookup(typingctx, table, index):  # type: ignore[no-untyped-def]
    """Lane by lane table[index & 15]; the table is float32 or int32 lanes, and so is the result."""
    if table not in (F32X16, I32X16) or index != I32X16:
        return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        features = context.codegen().magic_tuple()[2].split(",")
        entries = builder.bitcast(args[0], _vector(ir.FloatType(), LANES))
        if "+avx512f" in features:
            found = _with_avx512(builder, entries, args[1])
        elif "+avx2" in features:
            found = _with_avx2(builder, entries, args[1])
        else:
            found = _through_memory(builder, entries, args[1])
        return builder.bitcast(found, args[0].type)

    return table(table, index), build
