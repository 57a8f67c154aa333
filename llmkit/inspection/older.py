"""Inspecting files of older formats: PyTorch, PaddlePaddle, MXNet, Caffe, TensorFlow."""

from __future__ import annotations

from pathlib import Path

from llmkit.formats.older import OlderKind, read_older
from llmkit.inspection.records import Inspection

_ADVICE = (
    "little software still reads this format; llmkit convert FILE --to safetensors puts the tensors into one that does"
)


def inspect_older(path: Path, kind: OlderKind) -> Inspection:
    """What one file holds. Raises what `llmkit.formats.older.read_older` raises."""
    found = read_older(path, kind)
    return Inspection(
        kind=kind,
        path=path,
        files=tuple((file, file.stat().st_size) for file in found.files),
        tensors=found.tensors,
        notes=found.notes if kind == "pytorch" else (*found.notes, _ADVICE),
    )
