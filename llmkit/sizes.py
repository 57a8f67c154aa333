"""What each form of a model takes: exact sizes of files from their plans, and the memory to run them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from llmkit.errors import EvaluationError, UnsupportedError
from llmkit.models import ResolvedModel, resolve

if TYPE_CHECKING:
    from llmkit.convert.footprint import Footprint
    from llmkit.convert.plan import ConversionPlan

DEFAULT_CONTEXT: Final = 4096
_MAX_CONTEXT: Final = 1 << 24
# The process with its libraries, before the model (measured: llama.cpp, ONNX Runtime GenAI; Linux).
_PROCESS: Final = 100_000_000
# Rows of a prompt that pass together, and those of them that give logits at once.
_BATCH: Final = 512
_OUTPUTS: Final = 128
# For models that come in that type; in need of an importance matrix.
_LEFT_OUT: Final = frozenset({"mxfp4_moe", "q2_k_s"})


@dataclass(frozen=True, slots=True)
class TargetSize:
    """What one target takes.

    target: as it stands behind --to of `llmkit convert`, with --recipe if need be. n_bytes: of its files. memory: bytes
    to run it with the context, weights included. bytes_per_token: of the weights, those that one token of an answer
    needs.
    """

    target: str
    n_bytes: int
    memory: int
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A model's targets. cache_bytes: of the context, in float16. notes: why targets are missing."""

    model: ResolvedModel
    architecture: str
    n_params: int
    n_layers: int
    n_context: int
    cache_bytes: int
    targets: tuple[TargetSize, ...]
    notes: tuple[str, ...]


def sizes_of(
    model: str | os.PathLike[str] | ResolvedModel, *, context: int | None = None, provider: str = "cpu"
) -> ModelSizes:
    """Plan all conversions of a checkpoint or of a GGUF file; no weight is read.

    context: tokens, by default those that the model was trained for, at most 4096. provider: of ONNX models.

    Raises EvaluationError for a context that cannot be, UnsupportedError for a model that becomes no GGUF file.
    """
    if context is not None and not 1 <= context <= _MAX_CONTEXT:
        raise EvaluationError(f"a context of {context} tokens: expected 1 to {_MAX_CONTEXT:,}")
    found = model if isinstance(model, ResolvedModel) else resolve(os.fspath(model), want="convertible")
    plans = list(_gguf_plans(found))
    first = plans[0]
    shape = first.footprint
    assert shape is not None  # of a GGUF plan
    n_context = context or min(shape.trained_context or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    notes: list[str] = []
    targets = [_target_size(plan, shape, n_context, cache_type=2) for plan in plans]
    try:
        onnx = list(_onnx_plans(found, provider))
    except UnsupportedError as error:
        notes.append(f"no ONNX: {error}")
    else:
        width = 4 if provider == "cpu" else 2  # the cache has the type of the activations
        targets += [_target_size(plan, shape, n_context, cache_type=width) for plan in onnx]
    return ModelSizes(
        model=found,
        architecture=first.architecture,
        n_params=first.n_params,
        n_layers=shape.n_layers,
        n_context=n_context,
        cache_bytes=shape.cache_bytes(n_context),
        targets=tuple(targets),
        notes=tuple(notes),
    )


def _gguf_plans(model: ResolvedModel) -> Iterator[ConversionPlan]:
    """The types, roughly from the largest to the smallest."""
    from llmkit.convert.checkpoint import open_checkpoint
    from llmkit.convert.gguf_source import open_source
    from llmkit.convert.gguf_target import plan_gguf, read_tokenizer
    from llmkit.convert.quantization import plan_quantize
    from llmkit.quantize.recipes import RECIPES
    from llmkit.runtimes.tokenizing import LlamaCppJudge

    recipes = [recipe for name, recipe in RECIPES.items() if name not in _LEFT_OUT]
    if model.kind == "gguf":
        source = open_source(model.path)
        yield from (plan_quantize(source, recipe) for recipe in recipes)
    else:
        checkpoint = open_checkpoint(model.path)
        tokenizer = read_tokenizer(checkpoint, pre=None, judge=LlamaCppJudge(), notes=[])
        yield from (plan_gguf(checkpoint, recipe, tokenizer=tokenizer) for recipe in recipes)


def _onnx_plans(model: ResolvedModel, provider: str) -> Sequence[ConversionPlan]:
    try:
        from llmkit.convert.network.source import from_checkpoint, from_gguf
        from llmkit.convert.onnx.target import plan_onnx
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"writing ONNX models needs the package {error.name!r}: pip install 'llmkit[onnx]'"
        ) from error
    from llmkit.convert.checkpoint import open_checkpoint
    from llmkit.convert.gguf_source import open_source
    from llmkit.convert.onnx.recipes import MIXTURES, RECIPES, OnnxOptions

    source = (
        from_gguf(open_source(model.path)) if model.kind == "gguf" else from_checkpoint(open_checkpoint(model.path))
    )
    plain = OnnxOptions(provider=provider)
    plans = [plan_onnx(source, recipe, options=plain) for recipe in RECIPES.values()]
    for mixture in MIXTURES:
        plan = plan_onnx(source, RECIPES["int4"], options=OnnxOptions(provider=provider, mixture=mixture))
        plans.append(replace(plan, target=f"{plan.target} --recipe {mixture}"))
    return plans


def _target_size(plan: ConversionPlan, shape: Footprint, n_context: int, *, cache_type: int) -> TargetSize:
    rows = 4 * (_OUTPUTS * shape.n_vocab + _BATCH * (2 * shape.n_ff + 8 * shape.n_embd))
    return TargetSize(
        target=plan.target,
        n_bytes=plan.total_bytes,
        memory=plan.total_bytes + shape.cache_bytes(n_context, cache_type) + rows + _PROCESS,
        bytes_per_token=_read_for_a_token(plan, shape.expert_share),
    )


def _read_for_a_token(plan: ConversionPlan, expert_share: float) -> int:
    """Of each tensor all bytes; of experts the share that is used; of an embedding with an output of its own a row."""
    is_tied = not any(tensor.name == "output.weight" for tensor in plan.tensors)
    total = 0.0
    for tensor in plan.tensors:
        if "_exps." in tensor.name:
            total += tensor.nbytes * expert_share
        elif tensor.name == "token_embd.weight" and not is_tied:
            total += tensor.nbytes / max(1, tensor.shape[0])
        else:
            total += tensor.nbytes
    return int(total)
