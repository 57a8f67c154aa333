"""Planning a folder for ONNX Runtime GenAI: graph, weights, settings and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from llmkit.convert.archs import HParams
from llmkit.convert.network.rotary import rotary_tables, short_positions
from llmkit.convert.network.source import DecoderSource
from llmkit.convert.network.weighing import weigh
from llmkit.convert.network.weights import Weight, gather_weights
from llmkit.convert.onnx.decoder import Computation, Decoder
from llmkit.convert.onnx.genai import MODEL, genai_config
from llmkit.convert.onnx.graph import Graph
from llmkit.convert.onnx.providers import find_provider
from llmkit.convert.onnx.recipes import OnnxOptions, OnnxRecipe, float_type_of, type_of
from llmkit.convert.plan import ConversionPlan, PlannedFile, PlannedTensor, Stored
from llmkit.convert.restore.plan import document
from llmkit.formats.checkpointfiles import GENAI_CONFIG
from llmkit.quantize.blockwise import BLOCK_SIZES, BlockwiseFormat
from llmkit.quantize.imatrix import ImportanceMatrix
from llmkit.quantize.schemes import array_widths
from llmkit.types import TensorType

DATA: Final = "model.onnx.data"
_ALIGNMENT: Final = 64  # of every array, so that it can be used as it is mapped
# GenAI's name of an architecture without parts of its own: it runs all decoders, and the graph says the rest.
_MODEL_TYPE: Final = "decoder"


def plan_onnx(
    source: DecoderSource,
    recipe: OnnxRecipe,
    *,
    options: OnnxOptions | None = None,
    importance: ImportanceMatrix | None = None,
) -> ConversionPlan:
    """Plan the conversion of a model by `recipe`; reads no weight.

    importance: weighs the errors of the columns of the 4-bit tensors that it has data for.

    Raises UnsupportedError for a setting that the graph has no operators for.
    """
    from llmkit import __version__

    hparams, notes = source.hparams, list(source.notes)
    options = (options or OnnxOptions()).mixed(recipe, hparams.n_layers)

    def have_one_type(weights: Sequence[Weight]) -> bool:
        return len({type_of(weight.names, weight.shape, recipe, options) for weight in weights}) == 1

    weights = gather_weights(hparams, source.matched, have_one_type)
    planned = [_planned(weight, recipe, options) for weight in weights.values()]
    planned = _with_whole_blocks(planned, float_type_of(recipe, options))
    notes += _unused_patterns(options, weights)
    if importance is not None:
        planned, more = weigh(planned, weights, importance, source.structure, hparams)
        notes += more
    tensors = _lay_out([*planned, *_rotary(hparams, float_type_of(recipe, options))])
    provider = find_provider(options.provider)
    graph = Graph(source.family.model_type, DATA, standard=provider.standard)
    how = Computation(
        type=float_type_of(recipe, options),
        accuracy_level=provider.accuracy_level if options.accuracy_level is None else options.accuracy_level,
        short_positions=short_positions(hparams, hparams.n_context),
        multiplies_transposed=provider.multiplies_transposed,
    )
    Decoder(graph, hparams, source.structure, {tensor.name: tensor for tensor in tensors}, how).build()
    model = graph.serialize("llmkit", __version__)
    return ConversionPlan(
        source=source.path,
        target=f"onnx-{recipe.name}",
        architecture=source.family.model_type,
        label=recipe.label,
        files=(
            PlannedFile(model, (), len(model), MODEL),
            _data_file(tensors),
            document(GENAI_CONFIG, genai_config(_MODEL_TYPE, hparams, source.token_ids, provider)),
            *source.tokenizer_files,
        ),
        notes=tuple(notes),
    )


def default_output(name: str, recipe: OnnxRecipe) -> Path:
    """`<model name>-ONNX-INT4` in the current folder."""
    return Path(f"{name}-ONNX-{recipe.label}")


def _planned(weight: Weight, recipe: OnnxRecipe, options: OnnxOptions) -> PlannedTensor:
    type = type_of(weight.names, weight.shape, recipe, options)
    return PlannedTensor(weight.name, weight.shape, type, weight.parts, 0, 0, wanted=type, map=weight.map)


def _unused_patterns(options: OnnxOptions, weights: Mapping[str, Weight]) -> list[str]:
    """A note for each pattern that fits no tensor."""
    names = {name for weight in weights.values() for name in weight.names}
    return [
        f"no tensor's name has {pattern.pattern!r} in it; --dry-run shows the names"
        for pattern, _ in options.tensor_types
        if not any(map(pattern.search, names))
    ]


def _with_whole_blocks(tensors: Sequence[PlannedTensor], float_type: TensorType) -> list[PlannedTensor]:
    """The tensors, embeddings and experts whose rows are no whole blocks in another type: their operators want such.

    An embedding gets smaller blocks if that helps. Experts stay floats, both matrices of a block.
    """
    broken = {
        t.name.partition("ffn_")[0]: _broken_rows(t) for t in tensors if "_exps.weight" in t.name and _broken_rows(t)
    }
    found = []
    for t in tensors:
        reason = broken.get(t.name.partition("ffn_")[0], "") if "_exps.weight" in t.name else ""
        if reason:
            t = replace(t, type=float_type, reason=reason)
        elif t.name == "token_embd.weight" and (reason := _broken_rows(t)):
            assert isinstance(t.type, BlockwiseFormat)
            sizes = [size for size in BLOCK_SIZES if size < t.type.block_size and t.shape[-1] % size == 0]
            type = replace(t.type, block_size=sizes[-1]) if sizes else float_type
            t = replace(t, type=type, reason=reason)
        found.append(t)
    return found


def _broken_rows(tensor: PlannedTensor) -> str:
    """Why the rows are no whole blocks; empty if they are."""
    if not isinstance(tensor.type, BlockwiseFormat) or tensor.shape[-1] % tensor.type.block_size == 0:
        return ""
    return (
        f"rows of {tensor.shape[-1]} weights are no whole blocks of {tensor.type.block_size}, which ONNX Runtime wants "
        "of embeddings and experts"
    )


def _rotary(h: HParams, type: TensorType) -> list[PlannedTensor]:
    """The tables of the rotary embedding, for every position of the context."""
    tables = rotary_tables(h, h.n_context)
    return [PlannedTensor(table.name, table.shape, type, (Stored.whole(table),), 0, 0, wanted=type) for table in tables]


def _lay_out(tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """The tensors with their places in the file of weights, array after array."""
    placed, end = [], 0
    for tensor in tensors:
        rows, columns = tensor.matrix
        offsets = []
        sizes = [rows * width for width in array_widths(tensor.type, columns)]
        for size in sizes:
            offsets.append(end)
            end += size + -size % _ALIGNMENT
        placed.append(replace(tensor, offset=offsets[0], other_offsets=tuple(offsets[1:]), nbytes=sum(sizes)))
    return placed


def _data_file(tensors: Sequence[PlannedTensor]) -> PlannedFile:
    offset, size = tensors[-1].ranges(0, tensors[-1].matrix[0])[-1]
    return PlannedFile(b"", tuple(tensors), offset + size, DATA)
