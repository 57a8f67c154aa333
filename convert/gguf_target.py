"""Planning a GGUF file: names, metadata and types for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

from llmkit.convert.archs import ConfigReader, Family, find_family
from llmkit.convert.checkpoint import Checkpoint
from llmkit.convert.encoding import importance_metadata, require_schemes, weigh
from llmkit.convert.filelayout import lay_out
from llmkit.convert.footprint import footprint
from llmkit.convert.gguf_keys import architecture_metadata, rope_factors
from llmkit.convert.lora.adapter import Adapter
from llmkit.convert.lora.merge import merge
from llmkit.convert.matching import MatchedTensor, match_tensors
from llmkit.convert.modelcard import general_metadata
from llmkit.convert.modelname import size_label
from llmkit.convert.packed import unpack
from llmkit.convert.plan import ConversionPlan, PlannedTensor
from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.formats.gguf import Value, string, u32
from llmkit.protocols import TokenizerJudge
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
from llmkit.types import TensorType, tensor_bytes

QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION


def plan_gguf(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    options: TypeOptions | None = None,
    importance: ImportanceMatrix | None = None,
    split_size: int | None = None,
    model_id: str | None = None,
    tokenizer_pre: str | None = None,
    adapters: Sequence[Adapter] = (),
    judge: TokenizerJudge | None = None,
    tokenizer: Mapping[str, Value] | None = None,
) -> ConversionPlan:
    """Plan the conversion of `checkpoint` to a GGUF file by `recipe`; reads no weight.

    adapters: are added to the weights.
    importance: weighs the errors of the columns of the tensors that it has data for.
    split_size: bytes of tensor data that a file may hold, if the model is to be split; see `lay_out`.
    judge: compares tokens where it is not certain how the engine should split text.
    tokenizer: its metadata, if they are known from planning this checkpoint before.
    """
    options = options or TypeOptions()
    whole, family, config = _read(checkpoint)
    hparams = family.read_hparams(config)
    notes: list[str] = []
    tensors = merge(unpack(whole, checkpoint.tensors, notes), adapters, notes)
    matched, found = match_tensors(family, hparams, checkpoint, tensors)
    notes += found
    model = ModelShape(
        hparams.n_layers,
        hparams.n_heads,
        hparams.n_kv_heads,
        n_experts=hparams.experts.n_experts if hparams.experts else 0,
        architecture=family.gguf_architecture,
    )
    quantized = {m.name: m.stored_type for m in matched if m.stored_type not in PLAIN_TYPES}
    choices = choose_types(
        recipe,
        model,
        [(m.name, m.shape) for m in matched],
        quantized=quantized,
        options=options,
        has_imatrix=importance is not None,
    )

    metadata: dict[str, Value] = {"general.architecture": string(family.gguf_architecture)}
    n_params = sum(prod(m.shape) for m in matched)
    size = _size_label({m.name: m.shape for m in matched})
    metadata |= general_metadata(checkpoint.folder, checkpoint.config, n_params, model_id, size=size, notes=notes)
    metadata |= architecture_metadata(family.gguf_architecture, hparams, notes)
    metadata["general.file_type"] = u32(_file_type(recipe, quantized.values()))
    metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    metadata |= tokenizer or read_tokenizer(checkpoint, pre=tokenizer_pre, judge=judge, notes=notes)
    if "tokenizer.chat_template" not in metadata and hparams.causal is not False:
        notes.append("the checkpoint has no chat template: `llmkit chat` will need --template, `llmkit generate` works")

    planned = [*rope_factors(hparams), *(_planned(m, choices[m.name]) for m in matched)]
    notes += unused_options(choices, options)
    if kept := [m for m in matched if quantized.get(m.name) is choices[m.name].type]:
        types = " and ".join(sorted({m.stored_type.name for m in kept}))
        notes.append(f"{len(kept)} tensors are {types} in the checkpoint and are kept so, bit for bit")
    require_schemes(planned)
    if importance is not None:
        planned = weigh(planned, choices, importance, notes)
        metadata |= importance_metadata(importance)
    return ConversionPlan(
        source=checkpoint.folder,
        target=f"gguf-{recipe.name}",
        architecture=family.gguf_architecture,
        label=recipe.label,
        files=lay_out(metadata, planned, split_size=split_size),
        notes=(*notes, *family.notes(config, hparams)),
        footprint=footprint(metadata),
    )


def read_tokenizer(
    checkpoint: Checkpoint, *, pre: str | None, judge: TokenizerJudge | None, notes: list[str]
) -> dict[str, Value]:
    """The metadata of a checkpoint's tokenizer, which are the same whatever the recipe; adds to `notes`."""
    whole, family, config = _read(checkpoint)
    n_vocab = family.read_hparams(config).n_vocab
    token_ids = whole.filled(config.values).values  # a multimodal model has them in either place
    return tokenizer_metadata(checkpoint.folder, n_vocab, token_ids, pre=pre, judge=judge, notes=notes)


def _read(checkpoint: Checkpoint) -> tuple[ConfigReader, Family, ConfigReader]:
    """The whole config.json, the family that it is of, and the part that describes the language model."""
    whole = ConfigReader(checkpoint.folder / "config.json", checkpoint.config)
    family = find_family(whole)
    config = whole.within(family.text_config) if family.text_config and family.text_config in whole else whole
    return whole, family, config


def _size_label(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The size as gguf-py counts it: of a mixture, one expert of each stack with all that is shared, times experts."""
    stacks = [shape for name, shape in shapes.items() if "_exps." in name and len(shape) >= 3]
    if not stacks:
        return size_label(sum(map(prod, shapes.values())))
    others = sum(prod(shape[1:]) - prod(shape) for shape in stacks)
    return size_label(sum(map(prod, shapes.values())) + others, sum(shape[0] for shape in stacks) // len(stacks))


def _file_type(recipe: Recipe, quantized: Iterable[TensorType]) -> int:
    """The number of the recipe, or that of MXFP4 where a recipe of plain types keeps such tensors."""
    mxfp4 = not recipe.quantizes and TensorType.MXFP4 in quantized
    return RECIPES["mxfp4_moe"].file_type if mxfp4 else recipe.file_type


def default_output(name: str, recipe: Recipe) -> Path:
    """`<model name>-Q4_K_M.gguf` in the current folder, as the community names its files."""
    return Path(f"{name}-{recipe.label}.gguf")


def _planned(matched: MatchedTensor, choice: Choice) -> PlannedTensor:
    return PlannedTensor(
        name=matched.name,
        shape=matched.shape,
        type=choice.type,
        parts=matched.parts,
        offset=0,
        nbytes=tensor_bytes(choice.type, matched.shape),
        wanted=choice.wanted,
        reason=choice.reason,
        map=matched.rule.map,
    )
