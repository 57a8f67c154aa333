"""Golden vectors: what a named build of ggml makes of fixed weights, kept in tests/golden.

`weights.npz` holds the rows of every case (float32 [rows, 256]); `<type>.npz` holds their encodings under the same
names (uint8 [rows, row_bytes]), for types that use one also the encodings with an importance matrix, and under `build`
the ggml that made them. For a type that is read but not written it holds bytes under PACKED and what ggml decodes them
to under DECODED. scripts/make_golden.py writes all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmkit.types import TensorType

FOLDER: Final = Path(__file__).resolve().parent.parent / "golden"
WEIGHTS: Final = FOLDER / "weights.npz"
PACKED: Final = "packed"  # uint8 [rows, row_bytes]
DECODED: Final = "decoded"  # float32 [rows, columns]


def golden_file(type: TensorType) -> Path:
    return FOLDER / f"{type.name.lower()}.npz"


def weighted(case: str) -> str:
    """The name of a case's encoding with `importance`."""
    return f"{case}, weighted"


def importance(columns: int) -> NDArray[np.float32]:
    """The importance of the golden encodings: eight orders of magnitude, and a zero here and there."""
    column = np.arange(columns)
    exponents = column * 37 % 27 - 20
    return np.where(column % 11 == 3, 0, np.ldexp(1 + column % 7 / 8, exponents)).astype(np.float32)


def read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a golden file; a missing file is an error that says how to make it."""
    if not path.exists():
        raise AssertionError(f"{path} is missing: run scripts/make_golden.py where llama-cpp-python is installed")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
