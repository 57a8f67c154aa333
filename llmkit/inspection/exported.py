"""Inspecting a folder of a deployment format, by its llmkit.json."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import MANIFEST
from llmkit.formats.exported import ExportedModel, read_exported
from llmkit.formats.safetensors import read_header
from llmkit.inspection.records import Hyperparameters, Inspection
from llmkit.inspection.tokenizer import read_templates, read_tokenizer
from llmkit.types import TensorInfo


def inspect_exported(folder: Path) -> Inspection:
    """Inspect the folder; the model itself is not loaded.

    Tensors are those that the model was built from. Where they lie is known only of formats that keep them in a file
    of their own; of others the offset is -1. Raises FormatError for a damaged folder.
    """
    found = read_exported(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    shape = found.cache_shape
    return Inspection(
        kind="exported",
        path=folder,
        files=tuple((path, path.stat().st_size) for path in files),
        tensors=tuple(_tensors(found)),
        architecture=found.architecture,
        name=folder.resolve().name,
        hyperparameters=Hyperparameters(
            n_context=found.n_context, n_layers=shape[0], n_kv_heads=shape[2], n_vocab=found.n_vocab
        ),
        tokenizer=read_tokenizer(folder, bos=found.values["token_ids"].get("bos"), ends=found.ends),
        templates=read_templates(folder),
        metadata={key: value for key, value in found.values.items() if key != "tensors"},
    )


def _tensors(found: ExportedModel) -> list[TensorInfo]:
    if "weights" in found.values:
        return list(read_header(found.file("weights")).tensors.values())
    tensors = found.values.get("tensors")
    if not isinstance(tensors, dict):
        raise FormatError(found.path / MANIFEST, "tensors must be an object")
    return [_tensor(name, values, found.path) for name, values in tensors.items()]


def _tensor(name: str, values: Any, folder: Path) -> TensorInfo:
    dtype, shape, n_bytes = (
        (values.get(key) for key in ("dtype", "shape", "bytes")) if isinstance(values, dict) else (None, None, None)
    )
    if (
        not isinstance(dtype, str)
        or not isinstance(shape, list)
        or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
        or prod(shape) >= 1 << 60
        or type(n_bytes) is not int
        or not 0 <= n_bytes < 1 << 60
    ):
        raise FormatError(folder / MANIFEST, "expected a dtype, a shape and bytes", tensor=name)
    return TensorInfo(name, dtype, tuple(shape), folder / MANIFEST, -1, n_bytes)
