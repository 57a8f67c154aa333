"""Tables of LevelDB's kind, sorted keys with values, as the indices of TensorFlow's checkpoints are.

Format: leveldb, doc/table_format.md, and tensorflow/tsl/lib/io. The last 48 bytes say where the index of blocks is; a
block holds entries, whose keys share their beginnings with the one before, and ends with the places where none is
shared. After each block come its kind (0: not compressed) and a checksum, CRC-32C, masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.files import open_regular, read_exactly

MAGIC: Final = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER: Final = 48
_TRAILER: Final = 5
_MAX_BYTES: Final = 64 << 20  # tensors take 100 to 200 bytes each
# Keys may be longer than what is stored of them; so many times the file is more than real names make of it.
_MOST_TIMES: Final = 64


def read_table(path: Path) -> Iterator[tuple[bytes, memoryview]]:
    """The keys and values of a table, in order; memory stays in proportion to the file.

    Raises FormatError for damage, which checksums tell, UnsupportedError for compressed tables.
    """
    file, size = open_regular(path)
    with file:
        if size > _MAX_BYTES:
            raise FormatError(path, f"has {size:,} bytes; an index may have {_MAX_BYTES:,}")
        content = memoryview(read_exactly(file, size, path))
    if size < _FOOTER or content[-len(MAGIC) :] != MAGIC:
        raise FormatError(path, "is no table, as the index of a TensorFlow checkpoint is, or is truncated")
    position = size - _FOOTER
    handles = []
    for _ in range(4):  # of the block of statistics, which is of no account, and of the index
        number, position = _varint(content, position, path)
        handles.append(number)
    left, before = _MOST_TIMES * size, b""
    for _, handle in _entries(_block(content, handles[2], handles[3], path), path):
        begin, position = _varint(handle, 0, path)
        length, _ = _varint(handle, position, path)
        for key, value in _entries(_block(content, begin, length, path), path):
            left -= len(key)
            if left < 0 or (before and key <= before):
                raise FormatError(path, "has keys out of order or bounds; the file is damaged")
            before = key
            yield key, value


def _block(content: memoryview, begin: int, length: int, path: Path) -> memoryview:
    """The entries of the block at this place."""
    if begin + length + _TRAILER > len(content):
        raise FormatError(path, f"has a block at byte {begin:,} that ends beyond the file; the file is damaged")
    block, end = content[begin : begin + length], begin + length
    if content[end] != 0:
        raise UnsupportedError(f"{path}: is compressed (kind {content[end]}), which TensorFlow does not do")
    if not _has_checksum(content[begin : end + 1], content[end + 1 : end + _TRAILER]):
        raise FormatError(path, f"the block at byte {begin:,} does not have its checksum; the file is damaged")
    restarts = 4 * (1 + int.from_bytes(block[-4:], "little"))
    if restarts > length:
        raise FormatError(path, f"the block at byte {begin:,} is too short; the file is damaged")
    return block[: length - restarts]


def _entries(block: memoryview, path: Path) -> Iterator[tuple[bytes, memoryview]]:
    position, key = 0, b""
    while position < len(block):
        shared, position = _varint(block, position, path)
        unshared, position = _varint(block, position, path)
        length, position = _varint(block, position, path)
        if shared > len(key) or position + unshared + length > len(block):
            raise FormatError(path, "has an entry that ends beyond its block; the file is damaged")
        key = key[:shared] + bytes(block[position : position + unshared])
        position += unshared
        yield key, block[position : position + length]
        position += length


def _varint(content: memoryview, position: int, path: Path) -> tuple[int, int]:
    """The number at `position`, and the position after it."""
    value = 0
    for index in range(10):
        if position + index >= len(content):
            break
        byte = content[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise FormatError(path, "has a number without end; the file is damaged")


def _has_checksum(data: memoryview, stored: memoryview) -> bool:
    """Checksums are stored masked: those of what holds checksums would be weak (leveldb, util/crc32c.h)."""
    checksum = crc32c(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF == int.from_bytes(stored, "little")


@cache
def _crc_table() -> tuple[int, ...]:
    """What each byte does to a CRC-32C (RFC 3720, appendix B.4)."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: memoryview | bytes) -> int:
    """CRC-32C, not masked."""
    table, value = _crc_table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF
