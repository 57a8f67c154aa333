"""Builds GGUF files byte by byte, well-formed or not, without llmkit's own writer."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(content)) + content


def pair(key: str | bytes, type: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", type) + payload


def array(element_type: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", element_type, count) + payload


def tensor(name: str | bytes, dims: Sequence[int], type: int, offset: int, *, n_dims: int | None = None) -> bytes:
    """`dims` as stored: fastest first."""
    n_dims = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", n_dims, *dims, type, offset)


def gguf(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_keys = len(pairs) if n_keys is None else n_keys
    header = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data
