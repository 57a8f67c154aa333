"""Planning a GGUF adapter, which llama.cpp adds to a model as it runs.

For each matrix W of the model that an adapter changes, the file has `<W>.lora_a` and `<W>.lora_b`; llama.cpp computes
W x + alpha / r * b (a x). Rows of b go where those of W went when the model was converted. Source: llama.cpp,
src/llama-adapter.cpp and convert_lora_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmkit.convert.archs import ConfigReader, Family, HParams, Source, TensorRule, find_family
from llmkit.convert.filelayout import lay_out
from llmkit.convert.lora.adapter import Adapter, LowRank
from llmkit.convert.matching import expected_rules, source_names
from llmkit.convert.packed.base import OneAsFloats
from llmkit.convert.packed.reader import Reader, to_float32
from llmkit.convert.plan import ConversionPlan, PlannedTensor, Stored
from llmkit.convert.transforms import View
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, f32, string, u32
from llmkit.types import TensorInfo, TensorType, tensor_bytes

_QUANTIZATION_VERSION: Final = 2
_FILE_TYPES: Final = {TensorType.F32: 0, TensorType.F16: 1, TensorType.BF16: 32}


@dataclass(frozen=True, slots=True)
class Scaled(OneAsFloats):
    """A stored matrix times a number, for changes whose scale is not alpha / r."""

    factor: float

    def read_rows(self, first: int, count: int, reader: Reader) -> NDArray[np.float32]:
        rows = to_float32(self.tensor, reader.rows(self.tensor, first, count))
        return (rows.astype(np.float64) * self.factor).astype(np.float32)


def plan_adapter(adapter: Adapter, config: ConfigReader, name: str) -> ConversionPlan:
    """Plan the GGUF file of an adapter to the model whose config.json is `config`; `name` is the adapter's.

    Tensors keep their type. Raises UnsupportedError for what llama.cpp cannot apply, FormatError for an adapter of
    another model.
    """
    if adapter.replaced:
        example = next(iter(adapter.replaced))
        raise UnsupportedError(
            f"{adapter.folder}: {len(adapter.replaced)} tensors were trained whole, such as {example}; an adapter in "
            "GGUF cannot hold these: merge it, with --lora"
        )
    family = find_family(config)
    hparams = family.read_hparams(config)
    places = _places(family, hparams)
    tensors: list[PlannedTensor] = []
    for change in adapter.changes.values():
        if change.name not in places:
            raise FormatError(
                change.b.path, f"changes {change.name!r}, which this model does not have", tensor=change.b.name
            )
        for rule, source, target in places[change.name]:
            tensors += _pair(change, rule, source, target, hparams, adapter)
    metadata: dict[str, Value] = {
        "general.architecture": string(family.gguf_architecture),
        "general.type": string("adapter"),
        "general.name": string(name),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": f32(adapter.alpha),
        "general.file_type": u32(_FILE_TYPES[_most(tensors)]),
        "general.quantization_version": u32(_QUANTIZATION_VERSION),
    }
    return ConversionPlan(
        source=adapter.folder,
        target="gguf-lora",
        architecture=family.gguf_architecture,
        label="LoRA",
        files=lay_out(metadata, tensors),
        notes=(),
    )


def _most(tensors: list[PlannedTensor]) -> TensorType:
    types = [tensor.ggml_type for tensor in tensors]
    return max(set(types), key=lambda type: (types.count(type), -type))


def _places(family: Family, hparams: HParams) -> Mapping[str, list[tuple[TensorRule, Source, str]]]:
    """By the name of a tensor in checkpoints: the tensors of the file that are made of it."""
    found: dict[str, list[tuple[TensorRule, Source, str]]] = {}
    for rule, block in expected_rules(family, hparams):
        target = rule.role if block is None else f"blk.{block}.{rule.role}"
        for source in rule.sources:
            if "{e}" not in source.pattern:
                (name,) = source_names(source, rule, block, hparams)
                found.setdefault(name, []).append((rule, source, target))
    return found


def _pair(
    change: LowRank, rule: TensorRule, source: Source, target: str, hparams: HParams, adapter: Adapter
) -> list[PlannedTensor]:
    stored = source.stored(hparams) if source.stored else rule.shape(hparams)
    if change.shape != stored:
        raise FormatError(
            change.b.path,
            f"changes {change.name!r} as a tensor of {list(change.shape)}; the model has {list(stored)}",
            tensor=change.b.name,
        )
    if rule.map is not None or len(rule.shape(hparams)) != 2:
        raise UnsupportedError(
            f"{change.b.path}: {change.name!r} is changed; llama.cpp applies adapters to matrices only"
        )
    rank = change.rank
    factor = change.scale / (adapter.alpha / rank)
    b = change.b if abs(factor - 1) < 1e-9 else Scaled(change.b, factor)
    if rule.role == "token_embd.weight":
        # Rows of tokens are looked up in a, so it lies the other way round.
        a_view: View = View.of(change.a.shape).swap(0, 1)
        b_views: View | tuple[View, ...] = View.of(b.shape)
    elif change.is_transposed:
        raise UnsupportedError(f"{change.b.path}: {change.name!r} is stored transposed, which llmkit does not do here")
    else:
        a_view = View.of(change.a.shape)
        b_views = source.view(hparams, View.of(b.shape)) if source.view else View.of(b.shape)
    return [
        _planned(f"{target}.lora_a", change.a, (a_view,)),
        _planned(f"{target}.lora_b", b, b_views if isinstance(b_views, tuple) else (b_views,)),
    ]


def _planned(name: str, tensor: TensorInfo | Scaled, views: tuple[View, ...]) -> PlannedTensor:
    parts = tuple(Stored(tensor, view) for view in views)
    columns, type = views[0].shape[-1], parts[0].type
    shape = (sum(view.n_elements for view in views) // columns, columns)
    return PlannedTensor(name, shape, type, parts, 0, tensor_bytes(type, shape), wanted=type)
