"""Ctrl-C during a long call into C code.

Python runs signal handlers between bytecodes, so a prompt of minutes could not be stopped. llama.cpp asks an abort
callback after every graph node; the callback runs on the calling thread and gives Python a chance to run the handler.
A KeyboardInterrupt raised there would be lost (ctypes reports and drops it), so the handler only sets a flag.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptFlag:
    """Set by Ctrl-C while it is watched."""

    def __init__(self) -> None:
        self.is_set = False


@contextmanager
def deferred_interrupt(flag: InterruptFlag) -> Iterator[None]:
    """Within the block Ctrl-C sets `flag`; KeyboardInterrupt is raised when the block ends.

    Only the main thread gets signals, and a program's own SIGINT handler is left in charge: in both cases the block
    runs as if it were not here.
    """
    flag.is_set = False
    watched = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not watched:
        yield
        return

    def handler(_number: int, _frame: FrameType | None) -> None:
        flag.is_set = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if flag.is_set:
        raise KeyboardInterrupt
