"""Reading a GGUF header field by field: no read goes beyond the file."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

from llmkit.errors import FormatError
from llmkit.formats.gguf.limits import MAX_STRING_BYTES

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class Cursor:
    """A position in a mapped file. `what` in the methods says in messages what is being read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def take(self, n_bytes: int, what: str) -> int:
        """Move over `n_bytes`; returns the position before them."""
        start = self.position
        if n_bytes > self.size - start:
            problem = (
                f"{what} at byte {start:,} takes {n_bytes:,} bytes, but the file ends {n_bytes - self.remaining:,} "
                "bytes before that; it is truncated or damaged"
            )
            raise FormatError(self.path, problem)
        self.position = start + n_bytes
        return start

    def u32(self, what: str) -> int:
        number: int = _U32.unpack_from(self.data, self.take(4, what))[0]
        return number

    def u64(self, what: str) -> int:
        number: int = _U64.unpack_from(self.data, self.take(8, what))[0]
        return number

    def skip_string(self, what: str) -> tuple[int, int]:
        """Move over a string; returns where its bytes start and end."""
        length = self.u64(f"the length of {what}")
        if length > MAX_STRING_BYTES:
            problem = f"{what}: a string of {length:,} bytes; the limit is {MAX_STRING_BYTES:,}"
            raise FormatError(self.path, problem)
        start = self.take(length, what)
        return start, start + length

    def name(self, what: str, max_bytes: int) -> str:
        """A key or tensor name: a string of at most `max_bytes` that must be valid UTF-8."""
        start, end = self.skip_string(what)
        if end - start > max_bytes:
            beginning = self.data[start : start + 80]
            problem = f"{what} takes {end - start:,} bytes; the limit is {max_bytes:,} (it begins {beginning!r})"
            raise FormatError(self.path, problem)
        try:
            return self.data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(self.path, f"{what} is not valid UTF-8: {self.data[start:end][:80]!r}") from None

    def skip_strings(self, count: int, what: str) -> None:
        """Move over `count` strings: the loop of `skip_string`, written out because vocabularies are large."""
        unpack, data, size, position = _U64.unpack_from, self.data, self.size, self.position
        number = 0
        try:
            for number in range(count):  # noqa: B007
                length = unpack(data, position)[0]
                if length > MAX_STRING_BYTES:
                    break
                position += 8 + length
            else:
                number = count
        except struct.error:
            pass
        if number == count and position <= size:
            self.position = position
            return
        # Something is wrong from string `number` on, or the last one ends outside: let the checked path say what.
        self._describe_bad_string(count, what)

    def _describe_bad_string(self, count: int, what: str) -> None:
        for number in range(count):
            self.skip_string(f"{what}[{number}]")
