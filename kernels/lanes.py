"""Sixteen float32 lanes as one Numba value.

LLVM vectorises a loop over an array, but not a search that runs many steps side by side and keeps its
running values in registers. These types make that explicit: `F32x16` holds sixteen float32, `Mask16` sixteen
truth values, and Python operators on them compile to one LLVM vector instruction each. LLVM splits them into
two AVX registers, four SSE or NEON registers, or one AVX-512 register, whatever the processor has; each lane
is IEEE arithmetic without contraction or reordering, so results do not depend on that choice.

Inside a kernel: `load`, `store`, `transpose`, `splat`, `select`, `sqrt`, `absolute`, `any_lane`; `+ - * /` and
comparisons on lanes; `& | ~` on masks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES: Final = 16


class _F32x16(types.Type):
    """Numba type of sixteen float32 lanes."""

    def __init__(self) -> None:
        super().__init__(name="F32x16")


class _Mask16(types.Type):
    """Numba type of sixteen truth values."""

    def __init__(self) -> None:
        super().__init__(name="Mask16")


F32X16: Final = _F32x16()
MASK16: Final = _Mask16()
_VECTOR: Final = ir.VectorType(ir.FloatType(), LANES)
_MASK: Final = ir.VectorType(ir.IntType(1), LANES)


@register_model(_F32x16)
class _F32x16Model(models.PrimitiveModel):  # type: ignore[misc]
    """Sixteen lanes are a first-class LLVM value."""

    def __init__(self, dmm: Any, fe_type: types.Type) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


@register_model(_Mask16)
class _Mask16Model(models.PrimitiveModel):  # type: ignore[misc]
    """A mask is a vector of single bits, as LLVM's comparisons return it."""

    def __init__(self, dmm: Any, fe_type: types.Type) -> None:
        super().__init__(dmm, fe_type, _MASK)


def _register(op: Any, arguments: tuple[types.Type, ...], result: types.Type, build: Callable[..., ir.Value]) -> None:
    """Type and lower the Python operator `op` on lanes."""

    class Template(ConcreteTemplate):  # type: ignore[misc]
        cases = [signature(result, *arguments)]  # noqa: RUF012 (Numba's protocol)

    infer_global(op)(Template)
    lower_builtin(op, *arguments)(lambda context, builder, sig, args: build(builder, *args))


_register(operator.add, (F32X16, F32X16), F32X16, lambda b, x, y: b.fadd(x, y))
_register(operator.sub, (F32X16, F32X16), F32X16, lambda b, x, y: b.fsub(x, y))
_register(operator.mul, (F32X16, F32X16), F32X16, lambda b, x, y: b.fmul(x, y))
_register(operator.truediv, (F32X16, F32X16), F32X16, lambda b, x, y: b.fdiv(x, y))
_register(operator.neg, (F32X16,), F32X16, lambda b, x: b.fneg(x))
# Ordered comparisons are false and != is true where a lane is NaN, as in C.
_register(operator.lt, (F32X16, F32X16), MASK16, lambda b, x, y: b.fcmp_ordered("<", x, y))
_register(operator.le, (F32X16, F32X16), MASK16, lambda b, x, y: b.fcmp_ordered("<=", x, y))
_register(operator.gt, (F32X16, F32X16), MASK16, lambda b, x, y: b.fcmp_ordered(">", x, y))
_register(operator.eq, (F32X16, F32X16), MASK16, lambda b, x, y: b.fcmp_ordered("==", x, y))
_register(operator.ne, (F32X16, F32X16), MASK16, lambda b, x, y: b.fcmp_unordered("!=", x, y))
_register(operator.and_, (MASK16, MASK16), MASK16, lambda b, x, y: b.and_(x, y))
_register(operator.or_, (MASK16, MASK16), MASK16, lambda b, x, y: b.or_(x, y))
_register(operator.invert, (MASK16,), MASK16, lambda b, x: b.not_(x))


def _address(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value) -> ir.Value:
    """Pointer to sixteen consecutive elements; no bounds check."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _alignment(array: types.Array) -> int:
    return 4 if array.aligned else 1


def _is_float32_array(array: types.Type) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1 and array.layout == "C"


@intrinsic
def load(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Lanes array[index : index + 16] of a contiguous float32 array."""
    if not _is_float32_array(array) or not isinstance(index, types.Integer):
        return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        position = context.cast(builder, args[1], sig.args[1], types.intp)
        return builder.load(_address(context, builder, sig.args[0], args[0], position), align=_alignment(array))

    return F32X16(array, index), build


@intrinsic
def store(typingctx, array, index, lanes):  # type: ignore[no-untyped-def]
    """array[index : index + 16] = lanes."""
    if not _is_float32_array(array) or not isinstance(index, types.Integer) or lanes != F32X16:
        return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        position = context.cast(builder, args[1], sig.args[1], types.intp)
        builder.store(args[2], _address(context, builder, sig.args[0], args[0], position), align=_alignment(array))
        return context.get_dummy_value()

    return types.void(array, index, lanes), build


def _interleave(builder: ir.IRBuilder, left: ir.Value, right: ir.Value, first: int) -> ir.Value:
    """Eight lanes of both, alternating, from lane `first` on."""
    order = [lane + side * LANES for lane in range(first, first + LANES // 2) for side in (0, 1)]
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))


@intrinsic
def transpose(typingctx, array, index, stride, out, to):  # type: ignore[no-untyped-def]
    """out[to + 16 * i + lane] = array[index + stride * lane + i] for sixteen lanes and sixteen i."""
    if not _is_float32_array(array) or not _is_float32_array(out):
        return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        start, step, end = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2, 4))
        rows = []
        for lane in range(LANES):
            position = builder.add(start, builder.mul(step, ir.Constant(start.type, lane)))
            address = _address(context, builder, sig.args[0], args[0], position)
            rows.append(builder.load(address, align=_alignment(array)))
        # Lane r of vector c is addressed by eight bits; interleaving vector k with k + 8 rotates them by one.
        for _ in range(4):
            pairs = [(rows[k], rows[k + LANES // 2]) for k in range(LANES // 2)]
            rows = [_interleave(builder, *pair, half) for pair in pairs for half in (0, LANES // 2)]
        for i, row in enumerate(rows):
            position = builder.add(end, ir.Constant(end.type, LANES * i))
            builder.store(row, _address(context, builder, sig.args[3], args[3], position), align=_alignment(out))
        return context.get_dummy_value()

    return types.void(array, index, stride, out, to), build


@intrinsic
def splat(typingctx, value):  # type: ignore[no-untyped-def]
    """All sixteen lanes equal to a float32 scalar."""
    if value != types.float32:
        return None  # a float64 here would hide a promotion that C does not make

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[0], ir.Constant(ir.IntType(32), 0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), order)

    return F32X16(value), build


@intrinsic
def select(typingctx, mask, where_true, where_false):  # type: ignore[no-untyped-def]
    """Lane by lane `where_true if mask else where_false`."""
    if (mask, where_true, where_false) != (MASK16, F32X16, F32X16):
        return None
    return F32X16(mask, where_true, where_false), lambda context, builder, sig, args: builder.select(*args)


def _unary(name: str) -> Callable[..., ir.Value]:
    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), name)
        return builder.call(function, args)

    return build


@intrinsic
def sqrt(typingctx, lanes):  # type: ignore[no-untyped-def]
    """Correctly rounded square root of each lane."""
    return (F32X16(lanes), _unary(f"llvm.sqrt.v{LANES}f32")) if lanes == F32X16 else None


@intrinsic
def absolute(typingctx, lanes):  # type: ignore[no-untyped-def]
    """Absolute value of each lane."""
    return (F32X16(lanes), _unary(f"llvm.fabs.v{LANES}f32")) if lanes == F32X16 else None


@intrinsic
def any_lane(typingctx, mask):  # type: ignore[no-untyped-def]
    """Whether a lane of the mask is true."""
    if mask != MASK16:
        return None

    def build(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(mask), build
