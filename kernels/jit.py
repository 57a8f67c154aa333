"""Compiling kernels: once, when first called, for one explicit signature, cached on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, Final, ParamSpec, TypeVar

from numba import njit, types

from llmkit.kernels.compilecache import numba_caches_here

P = ParamSpec("P")
R = TypeVar("R")

# Read-only parameters accept writable arrays too, and unaligned ones accept aligned arrays, so one compiled
# version serves memory-mapped weights, whatever their offset, as well as ordinary arrays.
_OPTIONS: Final = {
    "nogil": True,
    # Every addition and multiplication is rounded on its own, as in ggml's C code: no contraction, no reordering.
    "fastmath": False,
    # Division by zero gives infinity; the check for it would keep loops from being vectorised.
    "error_model": "numpy",
}


def source(element: types.Type) -> types.Array:
    """The type of a flat contiguous array that a kernel only reads."""
    return types.Array(element, 1, "C", readonly=True, aligned=False)


def target(element: types.Type) -> types.Array:
    """The type of a flat contiguous array that a kernel writes."""
    return types.Array(element, 1, "C", aligned=False)


INT: Final = types.int64
FLOATS_IN: Final = source(types.float32)
FLOATS_OUT: Final = target(types.float32)
INTS_OUT: Final = target(types.int32)
BYTES_IN: Final = source(types.uint8)
BYTES_OUT: Final = target(types.uint8)


def kernel(*arguments: types.Type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function for these Numba argument types when it is first called.

    The compiled code runs without the GIL and without bounds checks: a kernel's public wrapper checks shapes.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        compiled: list[Callable[..., R]] = []
        lock = Lock()

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not compiled:
                with lock:
                    if not compiled:
                        compiled.append(_compile(function, arguments))
            return compiled[0](*args, **kwargs)

        return call

    return decorate


def _compile(function: Callable[P, R], arguments: tuple[types.Type, ...]) -> Callable[..., R]:
    try:
        with numba_caches_here():
            dispatcher = njit(cache=True, **_OPTIONS)(function)
        return _compiled(dispatcher, arguments)
    except Exception:
        # A folder that cannot be written to, a full disk, a file that a crash cut short: a kernel can do without. What
        # is wrong with the kernel itself shows again.
        return _compiled(njit(**_OPTIONS)(function), arguments)


def _compiled(dispatcher: Any, arguments: tuple[types.Type, ...]) -> Callable[..., R]:
    """The dispatcher, of this one signature."""
    dispatcher.compile(arguments)
    dispatcher.disable_compile()
    found: Callable[..., R] = dispatcher
    return found


def helper(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function callable from kernels; it is compiled into each kernel that calls it."""
    compiled: Callable[P, R] = njit(fastmath=False, error_model="numpy")(function)
    return compiled
