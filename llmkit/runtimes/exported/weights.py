"""The weights of formats that keep them in a SafeTensors file beside the model."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from llmkit.formats.exported import ExportedModel
from llmkit.formats.safetensors import map_tensors


def read_weights(model: ExportedModel) -> dict[str, NDArray[Any]]:
    """All of them, mapped from the file, by name. Raises FormatError."""
    return map_tensors(model.file("weights"), ("F32", "F16"))
