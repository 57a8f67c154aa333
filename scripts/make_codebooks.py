#!/usr/bin/env python3
"""Write quantize/schemes/codebook_sets.py, the codebooks of the i-quants, from the tables of the gguf package.

    scripts/make_codebooks.py

gguf-py copied the tables from ggml-common.h. Their entries ascend when read as numbers whose lowest digit is the first
value, so that a codebook is fully described by the set of its entries; this script checks that and stores a bitmap.
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import quants
from numpy.typing import NDArray

MODULE: Final = Path(__file__).resolve().parent.parent / "quantize" / "schemes" / "codebook_sets.py"
HEAD: Final = '''"""The sets of entries in the codebooks of the i-quants, written by scripts/make_codebooks.py.

Bitmaps in base64: bit k (bit k % 8 of byte k // 8) tells whether the entry numbered k is in the codebook; see
llmkit.quantize.schemes.codebooks. Source of the tables: ggml-common.h of llama.cpp.
"""

from __future__ import annotations

from typing import Final
'''
LINE: Final = 100


def main() -> None:
    """Write the module."""
    parts = [HEAD]
    for name in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"):
        text = b64encode(bitmap(getattr(quants, name)).tobytes()).decode()
        lines = [f'    "{text[i : i + LINE]}"' for i in range(0, len(text), LINE)]
        parts.append("\n".join([f"{name}: Final = (", *lines, ")\n"]))
    MODULE.write_text("\n".join(parts), encoding="utf-8")


def bitmap(source: Any) -> NDArray[np.uint8]:
    """The set of entries of one of gguf-py's quantisation classes."""
    source.init_grid()
    entries = source.grid.reshape(source.grid_shape)
    base, length = len(source.grid_map), source.grid_shape[1]
    digits = (entries[..., None] == np.array(source.grid_map)).argmax(axis=-1)
    numbers = digits @ base ** np.arange(length)
    if (np.diff(numbers) <= 0).any():
        raise SystemExit(f"{source.__name__}: the entries do not ascend, so that a set does not give their order")
    members = np.zeros(base**length, bool)
    members[numbers] = True
    return np.packbits(members, bitorder="little")


if __name__ == "__main__":
    main()
