"""The layout of a new SafeTensors file: its header, and where each tensor goes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmkit.formats.safetensors import MAX_HEADER_BYTES
from llmkit.types import StoredType, tensor_bytes

_ALIGNMENT = 8  # of the first tensor's bytes: the header is filled up with spaces, as the format allows


@dataclass(frozen=True, slots=True)
class SafetensorsLayout:
    """`header` begins the file; tensor i begins at `offsets[i]` bytes from the start of the file."""

    header: bytes
    offsets: tuple[int, ...]
    total_bytes: int


def plan_safetensors(
    tensors: Sequence[tuple[str, StoredType, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> SafetensorsLayout:
    """Lay out tensors, (name, type, shape), in this order, without holes.

    metadata: of the file; by default what transformers writes.

    Raises ValueError if the header would be larger than the format allows.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    begins = []
    end = 0
    for name, type, shape in tensors:
        begins.append(end)
        end += tensor_bytes(type, shape)
        entries[name] = {"dtype": type.name, "shape": list(shape), "data_offsets": [begins[-1], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text):,} bytes; SafeTensors allows {MAX_HEADER_BYTES:,}")
    header = len(text).to_bytes(8, "little") + text
    return SafetensorsLayout(header, tuple(len(header) + begin for begin in begins), len(header) + end)
