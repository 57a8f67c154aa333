"""Reading pickles of NumPy arrays without unpickling: nothing is imported, called or executed.

Format: Python's Lib/pickletools.py, protocols 0 to 4 as far as dictionaries of arrays need them. A pickle is a program
for a machine with a stack. The one here knows the handful of functions that arrays are made with, by name, and builds
records of what they are given; any other name ends the reading. Bytes and texts stay in the file: what is built says
where they are. No step copies what others have built, so that memory and time are in proportion to the steps.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.older.base import MAX_DIMENSIONS, Cursor

_MAX_STEPS: Final = 2_000_000  # some 50 a tensor are usual; bounds what is built in memory
_MAX_NAME: Final = 1 << 16
_MAX_INTEGER: Final = 64  # bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes of the file that are a value: bytes, or a text in UTF-8 (of Python 2, in Latin-1)."""

    offset: int
    size: int
    is_utf8: bool


@dataclass(frozen=True, slots=True)
class Latin1:
    """Bytes that are stored as the text, in UTF-8, of the characters with their numbers, as protocol 2 does it."""

    text: Stored


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class that the pickle names. Never looked up."""

    name: str


@dataclass(slots=True)
class DType:
    """numpy.dtype: `code` such as "f4"; the byte order comes later."""

    code: str
    order: str = "|"


@dataclass(slots=True)
class Array:
    """numpy.ndarray; `data` is Stored or Latin1 or, of Python objects, a list. None until it is known."""

    shape: tuple[int, ...] = ()
    dtype: DType = field(default_factory=lambda: DType("u1"))
    is_fortran: bool = False
    data: Any = None


# The names that are known, and by which of them the machine goes.
_KNOWN: Final = {
    "numpy.core.multiarray._reconstruct": "_reconstruct",
    "numpy._core.multiarray._reconstruct": "_reconstruct",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "_codecs.encode": "encode",
    "__builtin__.bytes": "bytes",  # an empty one, of protocol 2
    "builtins.tuple": "tuple",
    "__builtin__.tuple": "tuple",
    "collections.OrderedDict": "OrderedDict",
}

_MARK: Final = object()
Handler: TypeAlias = "Callable[[_Machine], object]"


def read_pickle(cursor: Cursor) -> Any:
    """What the pickle at the cursor is: dict, list, tuple, None, bool, int, float, Stored, Latin1, Array, DType.

    Keys of dictionaries are str, or other values that Python allows. Raises FormatError for damage, UnsupportedError
    for one that asks for anything else, which it names.
    """
    machine = _Machine(cursor)
    for _ in range(_MAX_STEPS):
        code = cursor.take(1)
        if code == b".":
            return machine.pop()
        handler = _OPCODES.get(code)
        if handler is None:
            raise FormatError(
                cursor.path,
                f"opcode {code!r} at byte {cursor.position - 1:,} has no place in a pickle of tensors; no file of "
                "PaddlePaddle, or a damaged one",
            )
        handler(machine)
    raise UnsupportedError(f"{cursor.path}: its pickle has more than {_MAX_STEPS:,} steps; files of tensors have fewer")


class _Machine:
    """The stack, what is remembered, and what each opcode does with them."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._texts: dict[Stored, str] = {}  # those that were asked for

    def damaged(self, problem: str) -> FormatError:
        return FormatError(self.cursor.path, f"{problem} at byte {self.cursor.position:,} of its pickle; it is damaged")

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.damaged("nothing is on the stack")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise self.damaged(f"no {kind.__name__} is on the stack")
        return self.stack[-1]

    def items(self) -> list[Any]:
        """What was put on the stack since the mark, which goes."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise self.damaged("no mark is on the stack")

    def text(self, value: Any) -> str:
        """The text that a value stands for."""
        if not isinstance(value, Stored) or value.size > _MAX_NAME:
            raise self.damaged("no name or short text is on the stack")
        if value not in self._texts:
            here = self.cursor.position
            self.cursor.position = value.offset
            raw = self.cursor.take(value.size)
            self.cursor.position = here
            try:
                self._texts[value] = raw.decode("utf-8" if value.is_utf8 else "latin-1")
            except UnicodeDecodeError:
                raise self.damaged("a text is not valid UTF-8") from None
        return self._texts[value]

    def store(self, size: int, *, is_utf8: bool) -> None:
        self.stack.append(Stored(self.cursor.skip(size), size, is_utf8))

    def integer(self, size: int) -> None:
        if not 0 <= size <= _MAX_INTEGER:
            raise self.damaged(f"an integer of {size:,} bytes")
        self.stack.append(int.from_bytes(self.cursor.take(size), "little", signed=True))

    def line(self) -> str:
        found = bytearray()
        while (byte := self.cursor.take(1)) != b"\n":
            found += byte
            if len(found) > _MAX_NAME:
                raise self.damaged("a name is too long")
        return found.decode("utf-8", "replace")

    def put(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.damaged("nothing is on the stack")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.damaged(f"number {index} was not remembered")
        self.stack.append(self.memo[index])

    def find(self, name: str) -> None:
        known = _KNOWN.get(name)
        if known is None:
            raise UnsupportedError(
                f"{self.cursor.path}: its pickle asks for {name[:100]}, code that loading it would run; llmkit reads "
                "arrays only. If you trust its source, load it with PaddlePaddle and save its state dict alone"
            )
        self.stack.append(Global(known))

    def find_by_stack(self) -> None:
        name, module = self.text(self.pop()), self.text(self.pop())
        self.find(f"{module}.{name}")

    def set_items(self, items: list[Any]) -> None:
        found = self.top(dict)
        if len(items) % 2:
            raise self.damaged("a key is without value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            found[self.key(key)] = value

    def key(self, value: Any) -> Any:
        if isinstance(value, Stored):
            return self.text(value)
        if value is None or isinstance(value, int | float):
            return value
        raise self.damaged(f"a key is a {type(value).__name__}")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or type(arguments) is not tuple:
            raise self.damaged("no function and its arguments are on the stack")
        match function.name, arguments:
            case "dtype", (code, *_):
                self.stack.append(DType(self.text(code)))
            case "encode", (Stored() as text, coding) if self.text(coding) in ("latin1", "latin-1"):
                self.stack.append(Latin1(text))
            case "tuple", (tuple() as values,):
                self.stack.append(values)
            case "bytes", ():
                self.store(0, is_utf8=False)
            case "OrderedDict", ():
                self.stack.append({})
            case "_reconstruct", (Global("ndarray"), *_):
                self.stack.append(Array())
            case "scalar", (DType() as dtype, data):
                self.stack.append(Array((), dtype, False, data))
            case _:
                raise self.damaged(f"{function.name} has arguments that do not fit")

    def build(self) -> None:
        state = self.pop()
        match self.top(object), state:
            case DType() as dtype, (_, Stored() as order, None, None, None, *_):
                dtype.order = self.text(order)
            case Array() as array, (_, tuple() as shape, DType() as dtype, bool() | int() as is_fortran, data) if len(
                shape
            ) <= MAX_DIMENSIONS and all(type(size) is int for size in shape):
                array.shape, array.dtype, array.is_fortran, array.data = shape, dtype, bool(is_fortran), data
            case DType(), _:
                raise UnsupportedError(f"{self.cursor.path}: holds an array of records, which llmkit does not read")
            case _:
                raise self.damaged("a state that does not fit is on the stack")


def _tuple_of(count: int) -> Handler:
    def make(machine: _Machine) -> None:
        found = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(found)))

    return make


def _constant(make: Callable[[], Any]) -> Handler:
    return lambda machine: machine.stack.append(make())


def _sized(form: str, is_utf8: bool) -> Handler:
    return lambda machine: machine.store(machine.cursor.number(form), is_utf8=is_utf8)


def _number(form: str) -> Handler:
    return lambda machine: machine.stack.append(machine.cursor.number(form))


def _float(machine: _Machine) -> None:
    machine.stack.append(struct.unpack(">d", machine.cursor.take(8))[0])


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine) -> None:
    values = machine.items()
    machine.top(list).extend(values)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _set_items(machine: _Machine) -> None:
    items = machine.items()
    machine.set_items(items)


_OPCODES: Final[dict[bytes, Handler]] = {
    b"\x80": lambda machine: machine.cursor.take(1),  # the protocol
    b"\x95": lambda machine: machine.cursor.take(8),  # a frame begins: of no account here
    b"(": _constant(lambda: _MARK),
    b"0": lambda machine: machine.pop(),
    b"1": lambda machine: machine.items(),
    b"N": _constant(lambda: None),
    b"\x88": _constant(lambda: True),
    b"\x89": _constant(lambda: False),
    b"J": _number("i"),
    b"K": _number("B"),
    b"M": _number("H"),
    b"\x8a": lambda machine: machine.integer(machine.cursor.number("B")),
    b"\x8b": lambda machine: machine.integer(machine.cursor.number("i")),
    b"G": _float,
    b"X": _sized("I", True),
    b"\x8c": _sized("B", True),
    b"\x8d": _sized("Q", True),
    b"B": _sized("I", False),
    b"C": _sized("B", False),
    b"\x8e": _sized("Q", False),
    b"U": _sized("B", False),
    b"T": _sized("I", False),
    b")": _constant(tuple),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"t": lambda machine: machine.stack.append(tuple(machine.items())),
    b"]": _constant(list),
    b"l": lambda machine: machine.stack.append(machine.items()),
    b"a": _append,
    b"e": _appends,
    b"}": _constant(dict),
    b"s": _set_item,
    b"u": _set_items,
    b"q": lambda machine: machine.put(machine.cursor.number("B")),
    b"r": lambda machine: machine.put(machine.cursor.number("I")),
    b"\x94": lambda machine: machine.put(len(machine.memo)),
    b"h": lambda machine: machine.get(machine.cursor.number("B")),
    b"j": lambda machine: machine.get(machine.cursor.number("I")),
    b"c": lambda machine: machine.find(f"{machine.line()}.{machine.line()}"),
    b"\x93": lambda machine: machine.find_by_stack(),
    b"R": lambda machine: machine.reduce(),
    b"b": lambda machine: machine.build(),
}
