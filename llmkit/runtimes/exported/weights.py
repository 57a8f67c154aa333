"""The weights of formats that keep them in a SafeTensors file beside the model."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import FormatError
from llmkit.formats.exported import ExportedModel
from llmkit.formats.safetensors import read_header

_DTYPES: Final = {"F32": np.float32, "F16": np.float16}


def read_weights(model: ExportedModel) -> dict[str, NDArray[np.float32]]:
    """All of them, mapped from the file, by name. Raises FormatError."""
    found: dict[str, NDArray[np.float32]] = {}
    for name, info in read_header(model.file("weights")).tensors.items():
        if info.dtype not in _DTYPES:
            raise FormatError(info.path, f"is {info.dtype}; expected F32 or F16", tensor=name)
        found[name] = np.memmap(info.path, _DTYPES[info.dtype], "r", info.offset, info.shape)
    return found
