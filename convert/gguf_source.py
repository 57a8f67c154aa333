"""Planning from GGUF to GGUF: a model's tensors in other types, its metadata kept and completed.

What is written, and in which order, is what llama-quantize writes (llama.cpp, src/llama-quant.cpp).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmkit.convert.encoding import importance_metadata, require_schemes, weigh
from llmkit.convert.filelayout import lay_out
from llmkit.convert.gguf_target import QUANTIZATION_VERSION
from llmkit.convert.plan import ConversionPlan, PlannedTensor
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.checkpointfiles import part_of_set
from llmkit.formats.gguf import GGUFFile, Value, open_gguf, u32
from llmkit.quantize.imatrix import ImportanceMatrix
from llmkit.quantize.recipes import (
    PLAIN_TYPES,
    RECIPES,
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
_SPLIT_KEYS: Final = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class GGUFSource:
    """A GGUF model to be quantised: all its files, the metadata of the first one, and the tensors of all."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int

    @property
    def path(self) -> Path:
        return self.files[0]


def open_source(path: Path) -> GGUFSource:
    """Open the model of which `path` is the file or, if it is split, any part; reads headers only.

    Raises what `open_gguf` raises, and FormatError if a part is missing or the parts do not belong together.
    """
    files = _part_paths(path)
    with ExitStack() as stack:
        parts = [stack.enter_context(open_gguf(file)) for file in files]
        _check_parts(parts)
        tensors: dict[str, TensorInfo] = {}
        for part in parts:
            for name, tensor in part.tensors.items():
                if name in tensors:
                    raise FormatError(part.path, f"is in {tensors[name].path} too", tensor=name)
                tensors[name] = tensor
        metadata = {key: parts[0].metadata[key] for key in parts[0].metadata if key not in _SPLIT_KEYS}
        return GGUFSource(tuple(files), metadata, tuple(tensors.values()), parts[0].alignment)


def _part_paths(path: Path) -> list[Path]:
    part = part_of_set(path.name)
    if part is None or part.count <= 1:
        return [path]
    paths = [path.with_name(part.sibling(number)) for number in range(1, part.count + 1)]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise FormatError(
            path, f"is one of {part.count} parts of a model, and {len(missing)} of them are missing beside it: {shown}"
        )
    return paths


def _check_parts(parts: Sequence[GGUFFile]) -> None:
    """The names must agree with what the files say of themselves."""
    first = parts[0]
    if first.split is None and len(parts) > 1:
        raise FormatError(first.path, f"is named as part 1 of {len(parts)}, but has no split.count; rename it")
    for number, part in enumerate(parts):
        split = part.split
        if split is not None and (split.number, split.count) != (number, len(parts)):
            expected = (
                f"part {number + 1} of {len(parts)}" if len(parts) > 1 else "named -00001-of-0000N.gguf and so on"
            )
            raise FormatError(part.path, f"says it is {part.note}; expected {expected}: give the parts their own names")
        if split is None and number:
            raise FormatError(part.path, f"has no split.count; expected part {number + 1} of {len(parts)}")
    n_tensors = sum(len(part.tensors) for part in parts)
    if first.split and first.split.n_tensors not in (None, n_tensors):
        raise FormatError(
            first.path,
            f"split.tensors.count says {first.split.n_tensors:,} tensors, the parts have {n_tensors:,}; download or "
            "split the model again",
        )


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
    )


def _planned(source: TensorInfo, choice: Choice | None) -> PlannedTensor:
    if choice is None:
        choice = Choice(TensorType[source.dtype], TensorType[source.dtype])
    return PlannedTensor(
        name=source.name,
        shape=source.shape,
        type=choice.type,
        source=source,
        rows=None,
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


_TYPE_NAMES: Final = "|".join(sorted({*RECIPES, *(type.name.lower() for type in TensorType)}, key=len, reverse=True))


def base_name(path: Path) -> str:
    """A model's name without its type: `Model-BF16.gguf` and its parts are `Model`; `x.gguf` is `x`."""
    part = part_of_set(path.name)
    stem = part.stem if part else path.stem
    return re.sub(rf"[-._](?:{_TYPE_NAMES})$", "", stem, flags=re.IGNORECASE) or stem
