"""Inspecting a folder of ONNX Runtime GenAI."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from llmkit.formats.genai import GenaiFolder, read_genai_folder
from llmkit.formats.onnxmodel import Blocks, OnnxTensor
from llmkit.inspection.records import Hyperparameters, Inspection
from llmkit.inspection.tokenizer import read_templates, read_tokenizer
from llmkit.types import TensorInfo


def inspect_onnx(folder: Path) -> Inspection:
    """Inspect the folder. A quantised matrix counts as one tensor, with its scales and zero points.

    Raises FormatError for a damaged folder, UnsupportedError for a model of several parts.
    """
    found = read_genai_folder(folder)
    model = found.model
    decoder = found.config["model"]["decoder"]
    files = (model.path, *model.files)
    return Inspection(
        kind="onnx",
        path=folder,
        files=tuple((path, path.stat().st_size) for path in files),
        tensors=tuple(_tensors(found)),
        architecture=found.architecture,
        name=folder.resolve().name,
        hyperparameters=Hyperparameters(
            n_context=found.n_context,
            n_layers=found.n_layers,
            n_embd=_number(decoder, "hidden_size"),
            n_heads=_number(decoder, "num_attention_heads"),
            n_kv_heads=_number(decoder, "num_key_value_heads"),
            n_vocab=found.n_vocab,
        ),
        tokenizer=read_tokenizer(folder, bos=found.config["model"].get("bos_token_id"), ends=found.ends),
        templates=read_templates(folder),
        metadata={"producer": model.producer, "opsets": dict(model.opsets), "operators": dict(model.operators)},
    )


def _number(values: dict[str, Any], key: str) -> int | None:
    found = values.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _tensors(found: GenaiFolder) -> list[TensorInfo]:
    """Every matrix and vector once, in the order of the graph; constants that are not weights are left out."""
    model = found.model
    parts = {name for b in model.blocks for name in (b.codes, b.scales, b.zero_points) if name}
    tensors = [_info(t, found) for t in model.tensors.values() if t.name not in parts and t.location is not None]
    seen = set()
    for blocks in model.blocks:
        codes = model.tensors.get(blocks.codes)
        if codes is None or (codes.location, codes.offset) in seen:
            continue  # an embedding that is the output matrix, too, or what another node makes
        seen.add((codes.location, codes.offset))
        tensors.append(_matrix(codes, blocks, found))
    return sorted(tensors, key=lambda t: (str(t.path), t.offset))


def _matrix(codes: OnnxTensor, blocks: Blocks, found: GenaiFolder) -> TensorInfo:
    names = (blocks.scales, blocks.zero_points or "")
    others = [found.model.tensors[name].nbytes for name in names if name in found.model.tensors]
    scales = found.model.tensors.get(blocks.scales)
    columns = (scales.shape[-1] if scales is not None and scales.shape else 0) * blocks.block_size
    rows = prod(codes.shape) * 8 // max(1, blocks.bits) // max(1, columns)
    kind = f"INT{blocks.bits}/{blocks.block_size}{'' if blocks.zero_points is None else 'Z'}"
    info = _info(codes, found)
    name = codes.name.removesuffix(".codes").removesuffix(".codes.rows")
    return TensorInfo(name, kind, (rows, columns), info.path, codes.offset, codes.nbytes + sum(others))


def _info(tensor: OnnxTensor, found: GenaiFolder) -> TensorInfo:
    path = found.path / (tensor.location or found.model.path.name)
    return TensorInfo(tensor.name, tensor.dtype, tensor.shape, path, tensor.offset, tensor.nbytes)
