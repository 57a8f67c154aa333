"""The alphabet of byte-level BPE: one printable character for each byte (GPT-2's `bytes_to_unicode`)."""

from __future__ import annotations

from functools import cache


@cache
def byte_alphabet() -> tuple[str, ...]:
    """The character that stands for each byte: printable Latin-1 for itself, then from U+0100 on."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in own else next(others)) for byte in range(256))


def spelled(data: bytes) -> str:
    """`data` in the alphabet."""
    return "".join(map(byte_alphabet().__getitem__, data))
