"""Constants of the GGUF format, and what ggml's own reader (gguf.cpp) enforces."""

from __future__ import annotations

from typing import Final

MAGIC: Final = b"GGUF"
WRITTEN_VERSION: Final = 3
READABLE_VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
ALIGNMENT_KEY: Final = "general.alignment"

MAX_STRING_BYTES: Final = 1 << 30
MAX_ARRAY_ITEMS: Final = 1 << 30
MAX_KEY_BYTES: Final = 65_535  # by docs/gguf.md; gguf.cpp takes longer ones
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME counts the closing NUL
MAX_DIMENSIONS: Final = 4
MAX_ELEMENTS: Final = (1 << 63) - 1
# Not a rule of the format: the largest published models have some 100,000 tensors. The bound keeps the memory
# that a forged count can cost small, whatever the size of the file.
MAX_ENTRIES: Final = 1 << 20


def is_power_of_two(number: int) -> bool:
    """Whether `number` is 1, 2, 4, ..."""
    return number > 0 and number & (number - 1) == 0


def padded(n_bytes: int, alignment: int) -> int:
    """`n_bytes` rounded up to a multiple of `alignment`."""
    return -(-n_bytes // alignment) * alignment
