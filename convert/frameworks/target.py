"""Planning the folder of a deployment format: the weights that it is built from, and what lies beside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final

from llmkit.convert.encoding import require_schemes
from llmkit.convert.frameworks.base import FrameworkTarget, Precision, tokens_at_once
from llmkit.convert.network.decoder import Network
from llmkit.convert.network.rotary import rotary_tables, short_positions
from llmkit.convert.network.source import DecoderSource
from llmkit.convert.network.weighing import is_searched, weigh
from llmkit.convert.network.weights import Weight, gather_weights
from llmkit.convert.plan import ConversionPlan, PlannedFile, PlannedTensor, Stored
from llmkit.errors import UnsupportedError
from llmkit.formats.safetensors_layout import plan_safetensors
from llmkit.quantize.blockwise import BLOCK_SIZES, BlockwiseFormat
from llmkit.quantize.imatrix import ImportanceMatrix
from llmkit.quantize.schemes import WeightType
from llmkit.types import CopiedType, StoredType, TensorType, tensor_bytes

WEIGHTS: Final = "weights.safetensors"
DEFAULT_CONTEXT: Final = 2048


@dataclass(frozen=True, slots=True)
class Assembly:
    """What is built of the planned weights once they are there. `settings` begin `llmkit.json`."""

    target: FrameworkTarget
    network: Network
    settings: Mapping[str, Any]


def plan_framework(
    source: DecoderSource,
    target: FrameworkTarget,
    *,
    name: str,
    n_context: int | None = None,
    importance: ImportanceMatrix | None = None,
) -> ConversionPlan:
    """Plan the conversion of a model to a deployment format; reads no weight.

    name: of the model, for `llmkit.json`. n_context: positions of the cache; by default what the model was trained
    for, at most 2,048. importance: weighs the errors of the columns of the 4-bit tensors that it has data for.

    Raises UnsupportedError for a cache that is longer than the model was trained for, and for an importance matrix
    where nothing has 4 bits.
    """
    h = source.hparams
    if n_context is not None and not 1 < n_context <= h.n_context:
        raise UnsupportedError(f"{source.path}: a context of {n_context:,}; the model was trained for {h.n_context:,}")
    n_context = n_context or min(h.n_context, DEFAULT_CONTEXT)
    weights = gather_weights(h, source.matched, lambda _: True)
    precision = target.framework.precisions[target.precision]
    tensors = [_planned(weight, precision) for weight in weights.values()]
    notes = list(source.notes)
    if importance is not None:
        if not any(is_searched(tensor.type) for tensor in tensors):
            raise UnsupportedError(f"{target.name} takes no imatrix: nothing in it has 4 bits")
        tensors, more = weigh(tensors, weights, importance, source.structure, h)
        notes += more
    tensors += [
        PlannedTensor(t.name, t.shape, TensorType.F32, (Stored.whole(t),), 0, 0, wanted=TensorType.F32)
        for t in rotary_tables(h, n_context)
    ]
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    network = Network(h, source.structure, shapes, n_context, short_positions(h, n_context))
    plan = ConversionPlan(
        source=source.path,
        target=target.name,
        architecture=source.family.model_type,
        label=target.label,
        files=(_weight_file(tensors), *source.tokenizer_files),
        notes=tuple(notes),
        assembly=Assembly(target, network, _settings(source, target, network, name, importance)),
    )
    require_schemes(plan.tensors)
    return plan


def default_output(name: str, target: FrameworkTarget) -> Path:
    """`<model name>-TORCH-FP32` in the current folder."""
    return Path(f"{name}-{target.label}")


def _planned(weight: Weight, precision: Precision) -> PlannedTensor:
    wanted: WeightType = TensorType.F32
    if len(weight.shape) > 1 and "ffn_gate_inp" not in weight.name:
        is_table = weight.name in ("token_embd.weight", "output.weight")
        wanted = precision.tables if is_table else precision.matrices
    type, reason = wanted, ""
    if isinstance(wanted, BlockwiseFormat):
        sizes = [n for n in BLOCK_SIZES if n <= wanted.block_size and weight.shape[-1] % n == 0]
        if len(weight.shape) > 2:
            type, reason = TensorType.F16, "experts are gathered, which takes floats"
        elif not sizes:
            type, reason = TensorType.F16, f"rows of {weight.shape[-1]} weights are no whole blocks"
        else:
            wanted = type = replace(wanted, block_size=sizes[-1])
    return PlannedTensor(weight.name, weight.shape, type, weight.parts, 0, 0, wanted, reason, map=weight.map)


def _weight_file(tensors: Sequence[PlannedTensor]) -> PlannedFile:
    """A SafeTensors file of the tensors, in which a blockwise type has several arrays."""
    arrays = [array for tensor in tensors for array in stored_arrays(tensor)]
    layout = plan_safetensors(arrays)
    offsets = iter(layout.offsets)
    placed = []
    for tensor in tensors:
        found = stored_arrays(tensor)
        first, *others = (next(offsets) for _ in found)
        nbytes = sum(tensor_bytes(type, shape) for _, type, shape in found)
        placed.append(replace(tensor, offset=first, other_offsets=tuple(others), nbytes=nbytes))
    return PlannedFile(layout.header, tuple(placed), layout.total_bytes, WEIGHTS)


def stored_arrays(tensor: PlannedTensor) -> list[tuple[str, StoredType, tuple[int, ...]]]:
    """The arrays of the file of weights that a tensor is: names, types, shapes."""
    form = tensor.type
    if not isinstance(form, BlockwiseFormat):
        return [(tensor.name, tensor.ggml_type, tensor.shape)]
    rows, columns = tensor.matrix
    floats = TensorType.F16 if form.half_scales else TensorType.F32
    found: list[tuple[str, StoredType, tuple[int, ...]]] = [
        (f"{tensor.name}.codes", CopiedType.U8, form.codes_shape(rows, columns)),
        (f"{tensor.name}.scales", floats, form.scales_shape(rows, columns)),
    ]
    if not form.symmetric:
        found.append((f"{tensor.name}.zero_points", CopiedType.U8, form.zero_points_shape(rows, columns)))
    return found


def _settings(
    source: DecoderSource, target: FrameworkTarget, network: Network, name: str, importance: ImportanceMatrix | None
) -> dict[str, Any]:
    """What `llmkit.json` says before the model is built; `llmkit.formats.exported` explains the keys."""
    h = network.hparams
    tables = ("rotary.",)
    return {
        "format": target.framework.name,
        "title": target.framework.title,
        "precision": target.precision,
        "source": {"name": name, "kind": "gguf" if source.path.is_file() else "checkpoint"},
        "architecture": source.family.model_type,
        "parameters": sum(prod(shape) for name, shape in network.shapes.items() if not name.startswith(tables)),
        "context": network.n_context,
        "trained_context": h.n_context,
        "vocabulary": h.n_vocab,
        "layers": h.n_layers,
        "cache_shape": list(network.cache_shape),
        "tokens_at_once": tokens_at_once(network),
        **({} if network.short_positions is None else {"short_positions": network.short_positions}),
        "token_ids": dict(source.token_ids),
        **({} if importance is None else {"imatrix": _origin(importance)}),
    }


def _origin(importance: ImportanceMatrix) -> dict[str, Any]:
    return {"name": importance.path.name, "datasets": list(importance.datasets)}
