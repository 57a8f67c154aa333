"""Hypothesis strategies that damage bytes: flips, cuts, splices, integers of extreme values."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypothesis import strategies as st

EXTREMES = [0, 1, 2, 31, 255, 65535, 65536, 1 << 20, (1 << 30) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40]
EXTREMES += [1 << 61, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]

Mutation = Callable[[bytes], bytes]


def _replaced(start: int, end: int, new: bytes) -> Mutation:
    return lambda content: content[:start] + new + content[end:]


def _over(position: int, new: bytes) -> Mutation:
    return _replaced(position, position + len(new), new)


def _flipped(position: int, mask: int) -> Mutation:
    return lambda content: (
        content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]
        if (position < len(content))
        else content
    )


def _copied(source: int, length: int, target: int, insert: bool) -> Mutation:
    def copy(content: bytes) -> bytes:
        piece = content[source : source + length]
        return content[:target] + piece + content[target if insert else target + len(piece) :]

    return copy


def binary(length: int, *, first: int = 0) -> st.SearchStrategy[Mutation]:
    """One mutation of `length` bytes that leaves those before `first` alone."""
    positions = st.integers(first, length - 1)
    lengths = st.integers(1, 100)
    return st.one_of(
        st.builds(_flipped, positions, st.integers(1, 255)),
        st.builds(lambda p, n: _over(p, struct.pack("<Q", n)), positions, st.sampled_from(EXTREMES)),
        st.builds(lambda p, n: _over(p, struct.pack("<I", n & 0xFFFFFFFF)), positions, st.sampled_from(EXTREMES)),
        st.builds(lambda p, new: _over(p, new), positions, st.binary(min_size=1, max_size=40)),
        st.builds(lambda p, new: _replaced(p, p, new), positions, st.binary(min_size=1, max_size=40)),
        st.builds(lambda p, n: _replaced(p, p + n, b""), positions, lengths),
        st.builds(_copied, positions, lengths, positions, st.booleans()),
    )
