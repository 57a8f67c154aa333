"""Sixteen int32 lanes as one Numba value, beside the float32 lanes of lanes.py.

`I32x16` holds sixteen signed 32-bit integers; `+ - & | ^` work lane by lane, between two of them or with one
integer for all lanes, and wrap around; `<< >>` take one shift count for all lanes, `>>` keeps the sign as in
Python; `< > ==` give a `Mask16`. Also here: the bits of float32 lanes, conversions, loads and stores of bytes and
half words, and reductions to a scalar. Nothing checks bounds: a kernel's public wrapper checks shapes.

Reducing floats through their bits keeps the result independent of the order in which lanes are combined; a float
maximum in LLVM vectorises only when told that NaN and negative zero do not matter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from llmkit.kernels.lanes import F32X16, LANES, MASK16

_BYTE: Final = ir.IntType(8)
_HALF: Final = ir.IntType(16)
_WORD: Final = ir.IntType(32)
_WORDS: Final = ir.VectorType(_WORD, LANES)
_FLOATS: Final = ir.VectorType(ir.FloatType(), LANES)

Build = Callable[[Any, ir.IRBuilder, Any, Any], ir.Value]


class _I32x16(types.Type):
    """Numba type of sixteen int32 lanes."""

    def __init__(self) -> None:
        super().__init__(name="I32x16")


I32X16: Final = _I32x16()


@register_model(_I32x16)
class _I32x16Model(models.PrimitiveModel):  # type: ignore[misc]  # Numba is untyped
    """Sixteen lanes are a first-class LLVM value."""

    def __init__(self, dmm: Any, fe_type: types.Type) -> None:
        super().__init__(dmm, fe_type, _WORDS)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [value] * LANES)


def _spread(builder: ir.IRBuilder, word: ir.Value) -> ir.Value:
    """All lanes equal to one 32-bit scalar."""
    undefined = ir.Constant(_WORDS, ir.Undefined)
    one = builder.insert_element(undefined, word, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, undefined, _constant(0))


def _register(op: Any, result: types.Type, build: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> None:
    """Type and lower the operator `op` for lanes with lanes and lanes with one integer."""

    class Template(ConcreteTemplate):  # type: ignore[misc]
        cases = [signature(result, I32X16, I32X16), signature(result, I32X16, types.int64)]  # noqa: RUF012

    def with_scalar(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return build(builder, args[0], _spread(builder, builder.trunc(args[1], _WORD)))

    infer_global(op)(Template)
    lower_builtin(op, I32X16, I32X16)(lambda context, builder, sig, args: build(builder, *args))
    lower_builtin(op, I32X16, types.int64)(with_scalar)


_register(operator.add, I32X16, lambda b, x, y: b.add(x, y))
_register(operator.sub, I32X16, lambda b, x, y: b.sub(x, y))
_register(operator.and_, I32X16, lambda b, x, y: b.and_(x, y))
_register(operator.or_, I32X16, lambda b, x, y: b.or_(x, y))
_register(operator.xor, I32X16, lambda b, x, y: b.xor(x, y))
_register(operator.lshift, I32X16, lambda b, x, y: b.shl(x, y))
_register(operator.rshift, I32X16, lambda b, x, y: b.ashr(x, y))
_register(operator.lt, MASK16, lambda b, x, y: b.icmp_signed("<", x, y))
_register(operator.gt, MASK16, lambda b, x, y: b.icmp_signed(">", x, y))
_register(operator.eq, MASK16, lambda b, x, y: b.icmp_signed("==", x, y))


def _element(array: types.Type, bits: int) -> bool:
    """Whether this is a flat contiguous array with elements of `bits` bits."""
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype.bitwidth == bits


def _pointer(context: Any, builder: ir.IRBuilder, sig: Any, args: Any, pointee: ir.Type) -> ir.Value:
    """Pointer to element args[1] of the array args[0], as a pointer to `pointee`."""
    position = context.cast(builder, args[1], sig.args[1], types.intp)
    data = context.make_array(sig.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [position]), pointee.as_pointer())


def _loading(element: ir.IntType, signed: bool = False) -> Build:
    """Lanes from sixteen consecutive elements."""

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        packed = ir.VectorType(element, LANES)
        elements = builder.load(_pointer(context, builder, sig, args, packed), align=1)
        return builder.sext(elements, _WORDS) if signed else builder.zext(elements, _WORDS)

    return build


def _storing(element: ir.IntType) -> Build:
    """Sixteen consecutive elements from the low bits of the lanes."""

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        packed = ir.VectorType(element, LANES)
        lanes = builder.trunc(args[2], packed) if element.width < 32 else args[2]
        builder.store(lanes, _pointer(context, builder, sig, args, packed), align=1)
        return context.get_dummy_value()

    return build


@intrinsic
def load_u8(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Lanes array[index : index + 16] of bytes, zero-extended."""
    return (I32X16(array, index), _loading(_BYTE)) if _element(array, 8) else None


@intrinsic
def load_i8(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Lanes array[index : index + 16] of bytes, sign-extended."""
    return (I32X16(array, index), _loading(_BYTE, signed=True)) if _element(array, 8) else None


@intrinsic
def load_u16(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Lanes array[index : index + 16] of uint16, zero-extended."""
    return (I32X16(array, index), _loading(_HALF)) if _element(array, 16) else None


@intrinsic
def store_u8(typingctx, array, index, lanes):  # type: ignore[no-untyped-def]
    """array[index : index + 16] = the low byte of each lane."""
    return (types.void(array, index, lanes), _storing(_BYTE)) if _element(array, 8) and lanes == I32X16 else None


@intrinsic
def store_u16(typingctx, array, index, lanes):  # type: ignore[no-untyped-def]
    """array[index : index + 16] = the low half of each lane."""
    return (types.void(array, index, lanes), _storing(_HALF)) if _element(array, 16) and lanes == I32X16 else None


@intrinsic
def store_i32(typingctx, array, index, lanes):  # type: ignore[no-untyped-def]
    """array[index : index + 16] = lanes."""
    return (types.void(array, index, lanes), _storing(_WORD)) if _element(array, 32) and lanes == I32X16 else None


def _getting(element: ir.IntType) -> Build:
    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        value = builder.load(_pointer(context, builder, sig, args, element), align=1)
        return builder.zext(value, _WORD) if element.width < 32 else value

    return build


def _putting(element: ir.IntType) -> Build:
    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        value = builder.trunc(args[2], element) if element.width < 32 else args[2]
        builder.store(value, _pointer(context, builder, sig, args, element), align=1)
        return context.get_dummy_value()

    return build


@intrinsic
def get_u16(typingctx, array, index):  # type: ignore[no-untyped-def]
    """The little-endian half word at byte `index`, as int32."""
    return (types.int32(array, index), _getting(_HALF)) if _element(array, 8) else None


@intrinsic
def get_u32(typingctx, array, index):  # type: ignore[no-untyped-def]
    """The little-endian word at byte `index`, as int32."""
    return (types.int32(array, index), _getting(_WORD)) if _element(array, 8) else None


@intrinsic
def put_u16(typingctx, array, index, value):  # type: ignore[no-untyped-def]
    """Store the low half of an int32, little-endian, at byte `index`."""
    return (types.void(array, index, types.int32), _putting(_HALF)) if _element(array, 8) else None


@intrinsic
def put_u32(typingctx, array, index, value):  # type: ignore[no-untyped-def]
    """Store an int32, little-endian, at byte `index`."""
    return (types.void(array, index, types.int32), _putting(_WORD)) if _element(array, 8) else None


@intrinsic
def splat_int(typingctx, value):  # type: ignore[no-untyped-def]
    """All lanes equal to one int32."""
    return I32X16(types.int32), lambda context, builder, sig, args: _spread(builder, args[0])


@intrinsic
def lane_numbers(typingctx):  # type: ignore[no-untyped-def]
    """0, 1, 2 .. 15."""
    return I32X16(), lambda context, builder, sig, args: ir.Constant(_WORDS, list(range(LANES)))


def _halves(first: int) -> Build:
    """Eight lanes of args[0] and the same eight of args[1], from lane `first` on."""
    order = [side + lane for side in (0, LANES) for lane in range(first, first + LANES // 2)]

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.shuffle_vector(*args, ir.Constant(_WORDS, order))

    return build


@intrinsic
def lower_halves(typingctx, left, right):  # type: ignore[no-untyped-def]
    """Lanes 0-7 of both, one after the other."""
    return (I32X16(left, right), _halves(0)) if (left, right) == (I32X16, I32X16) else None


@intrinsic
def upper_halves(typingctx, left, right):  # type: ignore[no-untyped-def]
    """Lanes 8-15 of both, one after the other."""
    return (I32X16(left, right), _halves(LANES // 2)) if (left, right) == (I32X16, I32X16) else None


@intrinsic
def bits_of(typingctx, lanes):  # type: ignore[no-untyped-def]
    """The IEEE bits of float32 lanes."""
    if lanes != F32X16:
        return None
    return I32X16(lanes), lambda context, builder, sig, args: builder.bitcast(args[0], _WORDS)


@intrinsic
def from_bits(typingctx, lanes):  # type: ignore[no-untyped-def]
    """The float32 lanes with these IEEE bits."""
    if lanes != I32X16:
        return None
    return F32X16(lanes), lambda context, builder, sig, args: builder.bitcast(args[0], _FLOATS)


@intrinsic
def float_from_bits(typingctx, value):  # type: ignore[no-untyped-def]
    """The float32 scalar with these IEEE bits."""
    return types.float32(types.int32), lambda context, builder, sig, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def to_float(typingctx, lanes):  # type: ignore[no-untyped-def]
    """Each int32 lane as float32, rounded to nearest."""
    if lanes != I32X16:
        return None
    return F32X16(lanes), lambda context, builder, sig, args: builder.sitofp(args[0], _FLOATS)


@intrinsic
def to_int(typingctx, lanes):  # type: ignore[no-untyped-def]
    """Each float32 lane rounded towards zero; -2**31 where that does not fit or the lane is NaN.

    C leaves the second case undefined. This is what x86's conversion gives, and so what ggml's x86 builds give;
    LLVM's own conversion would be undefined too, hence the explicit selection.
    """
    if lanes != F32X16:
        return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        fabs = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), f"llvm.fabs.v{LANES}f32"
        )
        limit = ir.Constant(_FLOATS, [2.0**31] * LANES)
        fits = builder.fcmp_ordered("<", builder.call(fabs, args), limit)
        return builder.select(fits, builder.fptosi(args[0], _WORDS), _constant(-(2**31)))

    return I32X16(lanes), build


@intrinsic
def select_int(typingctx, mask, where_true, where_false):  # type: ignore[no-untyped-def]
    """Lane by lane `where_true if mask else where_false`."""
    if (mask, where_true, where_false) != (MASK16, I32X16, I32X16):
        return None
    return I32X16(mask, where_true, where_false), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def larger(typingctx, left, right):  # type: ignore[no-untyped-def]
    """Lane by lane maximum."""
    if (left, right) != (I32X16, I32X16):
        return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.select(builder.icmp_signed(">", *args), *args)

    return I32X16(left, right), build


@intrinsic
def smaller(typingctx, left, right):  # type: ignore[no-untyped-def]
    """Lane by lane minimum."""
    if (left, right) != (I32X16, I32X16):
        return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.select(builder.icmp_signed("<", *args), *args)

    return I32X16(left, right), build


def _reducing(operation: str) -> Build:
    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        name = f"llvm.vector.reduce.{operation}.v{LANES}i32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORD, [_WORDS]), name)
        return builder.call(function, args)

    return build


@intrinsic
def largest(typingctx, lanes):  # type: ignore[no-untyped-def]
    """The maximum of all lanes, an int32."""
    return (types.int32(lanes), _reducing("smax")) if lanes == I32X16 else None


@intrinsic
def smallest(typingctx, lanes):  # type: ignore[no-untyped-def]
    """The minimum of all lanes, an int32."""
    return (types.int32(lanes), _reducing("smin")) if lanes == I32X16 else None


def _first(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    return builder.extract_element(args[0], ir.Constant(_WORD, 0))


@intrinsic
def first_lane(typingctx, lanes):  # type: ignore[no-untyped-def]
    """Lane 0 as int32."""
    return (types.int32(lanes), _first) if lanes == I32X16 else None


@intrinsic
def first_float(typingctx, lanes):  # type: ignore[no-untyped-def]
    """Lane 0 of float32 lanes."""
    return (types.float32(lanes), _first) if lanes == F32X16 else None


@intrinsic
def mask_bits(typingctx, mask):  # type: ignore[no-untyped-def]
    """The mask as an int32: bit i is lane i."""
    if mask != MASK16:
        return None
    return types.int32(mask), lambda context, builder, sig, args: builder.zext(builder.bitcast(args[0], _HALF), _WORD)


@intrinsic
def mask_from_bits(typingctx, bits):  # type: ignore[no-untyped-def]
    """The mask whose lane i is bit i of an int32's low half."""

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.bitcast(builder.trunc(args[0], _HALF), ir.VectorType(ir.IntType(1), LANES))

    return MASK16(types.int32), build
