"""Planning from GGUF to GGUF: a model's tensors in other types, its metadata kept and completed.

What is written, and in which order, is what llama-quantize writes (llama.cpp, src/llama-quant.cpp).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from llmkit.convert.encoding import importance_metadata, require_schemes, weigh
from llmkit.convert.filelayout import lay_out
from llmkit.convert.footprint import footprint
from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.gguf_target import QUANTIZATION_VERSION
from llmkit.convert.plan import ConversionPlan, PlannedTensor, Stored
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import u32
from llmkit.quantize.imatrix import ImportanceMatrix
from llmkit.quantize.recipes import (
    PLAIN_TYPES,
    Choice,
    ModelShape,
    Recipe,
    TypeOptions,
    choose_types,
    unused_options,
)
from llmkit.quantize.recipes.tensors import file_order
from llmkit.types import TensorInfo, TensorType, tensor_bytes

# Not weights: they are kept as they are.
_NUMBERS: Final = frozenset({TensorType.I8, TensorType.I16, TensorType.I32, TensorType.I64, TensorType.F64})


def plan_quantize(
    source: GGUFSource,
    recipe: Recipe,
    *,
    options: TypeOptions | None = None,
    importance: ImportanceMatrix | None = None,
    allow_requantize: bool = False,
    split_size: int | None = None,
) -> ConversionPlan:
    """Plan the quantisation of `source` by `recipe`; reads no weight.

    The architecture need not be known: what the choices depend on is in the metadata. Tensors that llama-quantize does
    not quantise keep their type. `importance` and `split_size` are as in `plan_gguf`.

    Raises UnsupportedError if tensors that are quantised already would get another type, unless `allow_requantize`.
    """
    options = options or TypeOptions()
    architecture = _text(source, "general.architecture")
    shape = _model_shape(source, architecture)
    weights = [t for t in source.tensors if TensorType[t.dtype] not in _NUMBERS]
    choices = choose_types(
        recipe,
        shape,
        [(t.name, t.shape) for t in weights],
        kept={t.name: TensorType[t.dtype] for t in weights},
        options=options,
        has_imatrix=importance is not None,
    )
    notes = list(unused_options(choices, options))
    tensors = [_planned(t, choices.get(t.name)) for t in sorted(source.tensors, key=lambda t: file_order(t.name))]
    require_schemes(tensors)
    _check_requantized(source, tensors, allow_requantize, notes)
    metadata = {key: value for key, value in source.metadata.items() if not key.startswith("quantize.imatrix.")}
    # llama-quantize sets these anew, which brings them to the end.
    for key, number in (
        ("general.quantization_version", QUANTIZATION_VERSION),
        ("general.file_type", recipe.file_type),
    ):
        metadata.pop(key, None)
        metadata[key] = u32(number)
    if importance is not None:
        tensors = weigh(tensors, choices, importance, notes)
        metadata |= importance_metadata(importance)
    return ConversionPlan(
        source=source.path,
        target=f"gguf-{recipe.name}",
        architecture=architecture,
        label=recipe.label,
        files=lay_out(metadata, tensors, alignment=source.alignment, split_size=split_size),
        notes=tuple(notes),
        footprint=footprint(metadata),
    )


def _planned(source: TensorInfo, choice: Choice | None) -> PlannedTensor:
    if choice is None:
        choice = Choice(TensorType[source.dtype], TensorType[source.dtype])
    return PlannedTensor(
        name=source.name,
        shape=source.shape,
        type=choice.type,
        parts=(Stored.whole(source),),
        offset=0,
        nbytes=tensor_bytes(choice.type, source.shape),
        wanted=choice.wanted,
        reason=choice.reason,
    )


def _check_requantized(source: GGUFSource, tensors: Sequence[PlannedTensor], allowed: bool, notes: list[str]) -> None:
    again = Counter(t.source_type for t in tensors if not t.is_copied and t.source_type not in PLAIN_TYPES)
    if not again:
        return
    types = ", ".join(f"{n} of {type.name}" for type, n in again.most_common())
    what = f"{again.total()} tensors are quantised already ({types})"
    if not allowed:
        raise UnsupportedError(
            f"{source.path}: {what}, and would get another type, from values that have lost precision before. Start "
            "from the F32, F16 or BF16 file of this model, or accept the greater loss with --allow-requantize"
        )
    notes.append(f"{what} and get another type: expect more loss than from the F32, F16 or BF16 file of this model")


def _model_shape(source: GGUFSource, architecture: str) -> ModelShape:
    if architecture == "clip":  # a multimodal projector, of which llama-quantize reads no such counts either
        return ModelShape(0, 0, 0, architecture=architecture)
    n_heads = _first(source, f"{architecture}.attention.head_count", 0)
    return ModelShape(
        n_layers=_first(source, f"{architecture}.block_count"),
        n_heads=n_heads,
        n_kv_heads=_first(source, f"{architecture}.attention.head_count_kv", n_heads),
        n_experts=_first(source, f"{architecture}.expert_count", 0),
        architecture=architecture,
    )


def _first(source: GGUFSource, key: str, default: int | None = None) -> int:
    """A count that is stated once or per block; then the first block's. Raises FormatError."""
    value: Any = source.metadata[key].data if key in source.metadata else default
    if isinstance(value, tuple) and value:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        found = "is missing" if key not in source.metadata else f"is {value!r}"
        raise FormatError(
            source.path, f"metadata {key} {found}, expected a count; the types of the tensors depend on it"
        )
    return value


def _text(source: GGUFSource, key: str) -> str:
    value: Any = source.metadata[key].data if key in source.metadata else None
    if not isinstance(value, str) or not value:
        found = "is missing" if key not in source.metadata else f"is {value!r}"
        raise FormatError(source.path, f"metadata {key} {found}, expected a text; this is no model's file")
    return value
