"""The functions behind `llmkit.convert`, `llmkit.quantize` and `llmkit.load`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.arguments import AdapterTarget, CheckpointTarget, output_path, parse_bytes, parse_recipe, parse_target
from llmkit.conversion import (
    DEFAULT_MEMORY,
    ConversionResult,
    Execution,
    carry_out,
    execution,
    importance_from,
    type_options,
)
from llmkit.errors import DependencyError, UnsupportedError
from llmkit.protocols import Progress, Session

if TYPE_CHECKING:
    from llmkit.convert.frameworks.base import FrameworkTarget
    from llmkit.convert.network.source import DecoderSource
    from llmkit.convert.onnx.recipes import OnnxOptions, OnnxRecipe
    from llmkit.formats.older import OlderKind
    from llmkit.models import ResolvedModel
    from llmkit.quantize.imatrix import ImportanceMatrix


def convert(
    model: str | os.PathLike[str] | ResolvedModel,
    to: str,
    *,
    output: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    pure: bool = False,
    tensor_types: Sequence[str] = (),
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    fallback: bool = True,
    split_size: int | str | None = None,
    verify: bool | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int | str = DEFAULT_MEMORY,
    allow_nonfinite: bool = False,
    tokenizer_pre: str | None = None,
    lora: Sequence[str] = (),
    base: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
    provider: str | None = None,
    context: int | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Convert a checkpoint to a GGUF file or an ONNX folder, quantised on the way, or a GGUF file to a checkpoint.

    model: a folder, `org/name[@revision]` or a word, as on the command line, or what `llmkit.models.resolve` returned;
        a GGUF file for the way back; a file of an older format (see `llmkit.formats.older`), whose tensors are put into
        one SafeTensors file.
    to: `gguf-<type>`, such as gguf-q4_k_m; `llmkit.quantize.recipes.RECIPES` lists the types. Or `safetensors`, with
        `-f32`, `-f16` or `-bf16` if not the type that suits the file (GPT-OSS's MXFP4 stays that): a folder that
        transformers loads. Or `gguf-lora`, of the folder of a LoRA adapter. Or `onnx-fp32`, `onnx-fp16`,
        `onnx-int8` or `onnx-int4`: a folder for ONNX Runtime GenAI. Or another deployment format, such as `torch`
        (`llmkit.convert.frameworks.registry.FRAMEWORKS` lists them): a folder with the model and its tokenizer.
    output: the file to write, or a folder for it; by default `<model name>-<TYPE>.gguf` in the current folder. Of a
        checkpoint the folder, by default `<model name>`; of an older file's tensors the file, by default
        `<its name>.safetensors`.
    imatrix: an importance matrix, in either of llama.cpp's forms.
    pure: give every tensor that is quantised the main type, not a mixture.
    tensor_types: `REGEX=TYPE`, for tensors whose names the expression is found in; the first that fits counts.
    output_type, token_embedding_type: types of the matrix that computes the logits and of the token embedding.
    fallback: whether a tensor whose rows a type does not divide may get another one; if not, that is an error.
    split_size: bytes of tensor data, or as "2GB", from which on the next part of a split model begins.
    verify: whether to read back and compare what was written; by default where it is cheap (see
        `llmkit.convert.verify.is_cheap`), and not what is copied out of an older file.
    threads: number of worker threads; by default one per CPU of this process.
    memory: bound on the buffers of all threads, in bytes or as "512MiB", "2GB".
    allow_nonfinite: convert NaN and infinite weights too instead of raising NonFiniteError.
    tokenizer_pre: llama.cpp's name of the pre-tokenizer, where it cannot be told from tokenizer.json.
    lora: folders of LoRA adapters, as PEFT saves them, that are added to the weights; `PATH:SCALE` for a part of one.
    base: of an adapter that is converted (`to` is gguf-lora), the model it is for, if not the one it names.

    recipe, block_size, symmetric, accuracy_level, provider: of ONNX, see `llmkit.convert.onnx.recipes.OnnxOptions`,
        where the recipe is the mixture; types for `tensor_types` are int4, int8 and float then.
    context: of a deployment format, positions of the cache; by default what the model was trained for, at most 2,048.

    Raises a subclass of LlmkitError; nothing lies at the output's final name then.
    """
    from llmkit.convert.checkpoint import open_checkpoint
    from llmkit.convert.frameworks.base import FrameworkTarget
    from llmkit.convert.gguf_target import default_output, plan_gguf
    from llmkit.convert.lora.adapter import parse_lora, read_adapter
    from llmkit.convert.onnx.recipes import OnnxOptions, OnnxRecipe, parse_onnx_type
    from llmkit.formats.files import user_path
    from llmkit.formats.older import find_older
    from llmkit.models import ResolvedModel, resolve
    from llmkit.quantize.recipes import TypeOptions
    from llmkit.runtimes.tokenizing import LlamaCppJudge

    started = time.monotonic()
    target = parse_target(to)
    how = execution(dry_run, overwrite, threads, memory, allow_nonfinite, verify, progress)
    for_onnx = any(option is not None for option in (recipe, block_size, symmetric, accuracy_level, provider))
    if isinstance(target, FrameworkTarget):
        options = type_options(pure, tensor_types, output_type, token_embedding_type, fallback)
        if options != TypeOptions() or for_onnx or split_size or tokenizer_pre or base:
            raise UnsupportedError(
                f"{to} takes context, lora and, with 4 bits, imatrix, but no other options for quantisation, "
                "tokenizers or files"
            )
        return _convert_framework(model, target, context, imatrix, lora, output, how, started)
    if context is not None:
        raise UnsupportedError(f"{to} takes no context: its cache is made when it is run")
    if isinstance(target, OnnxRecipe):
        if pure or output_type or token_embedding_type or not fallback or split_size or tokenizer_pre or base:
            raise UnsupportedError(
                f"{to} takes recipe, block_size, symmetric, accuracy_level, tensor_types, imatrix and lora, but no "
                "other options for quantisation, tokenizers or files"
            )
        wanted = OnnxOptions(
            mixture=recipe,
            block_size=block_size,
            symmetric=symmetric,
            accuracy_level=accuracy_level,
            tensor_types=tuple(parse_onnx_type(text) for text in tensor_types),
            provider=provider or "cpu",
        )
        return _convert_onnx(model, target, wanted, imatrix, lora, output, how, started)
    if for_onnx:
        raise UnsupportedError(
            f"{to} takes no recipe, block_size, symmetric, accuracy_level or provider: these are for ONNX"
        )
    options = type_options(pure, tensor_types, output_type, token_embedding_type, fallback)
    if isinstance(target, CheckpointTarget | AdapterTarget):
        if options != TypeOptions() or imatrix is not None or tokenizer_pre is not None or lora:
            raise UnsupportedError(f"{to} takes no options for quantisation, tokenizers or adapters")
        if isinstance(target, AdapterTarget):
            folder = model.path if isinstance(model, ResolvedModel) else model
            return _convert_adapter(os.fspath(folder), base, output, how, started)
        older = None if isinstance(model, ResolvedModel) else find_older(user_path(os.fspath(model)))
        if older is not None:
            if target.type is not None or split_size is not None:
                raise UnsupportedError(
                    f"{older[0]}: its tensors keep their types, in one file: give --to safetensors only"
                )
            return _extract(*older, output, how, started)
        return _restore(model, target, output, split_size, how, started)
    if base is not None:
        raise UnsupportedError("base belongs to gguf-lora; adapters are merged with lora")
    importance, part_bytes = importance_from(imatrix), None if split_size is None else parse_bytes(split_size)
    adapters = [read_adapter(*parse_lora(text)) for text in lora]
    resolved = (
        model if isinstance(model, ResolvedModel) else resolve(os.fspath(model), want="checkpoint", progress=progress)
    )
    path = output_path(output, default_output(resolved.name, target))
    checkpoint = open_checkpoint(resolved.path)
    plan = plan_gguf(
        checkpoint,
        target,
        options=options,
        importance=importance,
        split_size=part_bytes,
        model_id=resolved.repo,
        tokenizer_pre=tokenizer_pre,
        adapters=adapters,
        judge=LlamaCppJudge(),
    )
    folders = [resolved.path, *(adapter.folder for adapter in adapters)]
    # GGUF files there may be earlier results.
    inputs = [file for folder in folders for file in folder.iterdir() if file.suffix != ".gguf"]
    return carry_out(plan, path, [*inputs, *_files_of(importance)], how, started)


def _convert_adapter(
    model: str,
    base: str | os.PathLike[str] | None,
    output: str | os.PathLike[str] | None,
    how: Execution,
    started: float,
) -> ConversionResult:
    """A LoRA adapter to GGUF."""
    from llmkit.convert.archs import ConfigReader
    from llmkit.convert.lora.adapter import read_adapter
    from llmkit.convert.lora.target import plan_adapter
    from llmkit.formats.files import user_path
    from llmkit.formats.strictjson import read_json_object
    from llmkit.models import resolve

    folder = user_path(model)
    adapter = read_adapter(folder)
    wanted = adapter.base if base is None else os.fspath(base)
    if wanted is None:
        raise UnsupportedError(f"{folder}: does not say which model it is for; name it with --base (base)")
    config = resolve(wanted, want="checkpoint", download=False).path / "config.json"
    name = folder.resolve().name
    plan = plan_adapter(adapter, ConfigReader(config, read_json_object(config)), name)
    return carry_out(plan, output_path(output, Path(f"{name}-LoRA.gguf")), folder.iterdir(), how, started)


def _convert_onnx(
    model: str | os.PathLike[str] | ResolvedModel,
    recipe: OnnxRecipe,
    options: OnnxOptions,
    imatrix: str | os.PathLike[str] | None,
    lora: Sequence[str],
    output: str | os.PathLike[str] | None,
    how: Execution,
    started: float,
) -> ConversionResult:
    """A checkpoint or a GGUF file to a folder for ONNX Runtime GenAI."""
    try:
        from llmkit.convert.onnx.target import default_output, plan_onnx
    except ModuleNotFoundError as error:
        if error.name != "onnx_ir":
            raise
        raise DependencyError("onnx-ir", "onnx", "writing ONNX models") from error

    resolved, source, inputs = _decoder_source(model, lora, how)
    plan = plan_onnx(source, recipe, options=options, importance=importance_from(imatrix))
    folder = default_output(resolved.name, recipe) if output is None else Path(os.fspath(output))
    return carry_out(plan, folder, inputs, how, started)


def _convert_framework(
    model: str | os.PathLike[str] | ResolvedModel,
    target: FrameworkTarget,
    context: int | None,
    imatrix: str | os.PathLike[str] | None,
    lora: Sequence[str],
    output: str | os.PathLike[str] | None,
    how: Execution,
    started: float,
) -> ConversionResult:
    """A checkpoint or a GGUF file to the folder of a deployment format."""
    from llmkit.convert.frameworks.build import require_packages
    from llmkit.convert.frameworks.target import default_output, plan_framework

    if not how.dry_run:
        require_packages(target.framework)
    resolved, source, inputs = _decoder_source(model, lora, how)
    plan = plan_framework(source, target, name=resolved.name, n_context=context, importance=importance_from(imatrix))
    folder = default_output(resolved.name, target) if output is None else Path(os.fspath(output))
    return carry_out(plan, folder, inputs, how, started)


def _decoder_source(
    model: str | os.PathLike[str] | ResolvedModel, lora: Sequence[str], how: Execution
) -> tuple[ResolvedModel, DecoderSource, list[Path]]:
    """What `model` leads to, with its tensors found, and the files that they are read from."""
    from llmkit.convert.checkpoint import open_checkpoint
    from llmkit.convert.gguf_source import open_source
    from llmkit.convert.lora.adapter import parse_lora, read_adapter
    from llmkit.convert.network.source import from_checkpoint, from_gguf
    from llmkit.models import ResolvedModel, resolve

    resolved = (
        model
        if isinstance(model, ResolvedModel)
        else resolve(os.fspath(model), want="convertible", progress=how.progress)
    )
    if resolved.kind == "gguf":
        file = open_source(resolved.path)
        if lora:
            raise UnsupportedError("lora: adapters are added to checkpoints, and this is a GGUF file")
        return resolved, from_gguf(file), list(file.files)
    adapters = [read_adapter(*parse_lora(text)) for text in lora]
    checkpoint = open_checkpoint(resolved.path)
    return resolved, from_checkpoint(checkpoint, adapters), list(resolved.path.iterdir())


def _restore(
    model: str | os.PathLike[str] | ResolvedModel,
    target: CheckpointTarget,
    output: str | os.PathLike[str] | None,
    split_size: int | str | None,
    how: Execution,
    started: float,
) -> ConversionResult:
    """GGUF to a checkpoint folder."""
    from llmkit.convert.gguf_source import base_name, open_source
    from llmkit.convert.restore.plan import DEFAULT_SHARD, plan_checkpoint
    from llmkit.models import ResolvedModel, resolve

    resolved = model if isinstance(model, ResolvedModel) else resolve(os.fspath(model), want="gguf", download=False)
    source = open_source(resolved.path)
    shard = DEFAULT_SHARD if split_size is None else parse_bytes(split_size)
    plan = plan_checkpoint(source, target.type, shard_size=shard)
    folder = Path(base_name(source.path) if output is None else os.fspath(output))
    return carry_out(plan, folder, source.files, how, started)


def _extract(
    path: Path, kind: OlderKind, output: str | os.PathLike[str] | None, how: Execution, started: float
) -> ConversionResult:
    """The tensors of a file of an older format to one SafeTensors file, whatever their values are."""
    from llmkit.convert.extract import plan_extraction
    from llmkit.formats.older import read_older

    file = read_older(path, kind)
    target = output_path(output, Path(f"{path.stem}.safetensors"))
    how = replace(how, allow_nonfinite=True, verify=bool(how.verify))  # copies have no error to tell of
    return carry_out(plan_extraction(file), target, file.files, how, started)


def quantize(
    model: str | os.PathLike[str],
    to: str,
    *,
    output: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    pure: bool = False,
    tensor_types: Sequence[str] = (),
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    fallback: bool = True,
    allow_requantize: bool = False,
    split_size: int | str | None = None,
    verify: bool | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int | str = DEFAULT_MEMORY,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> ConversionResult:
    """Quantise a GGUF file: the same model in another type, its metadata kept and completed.

    model: a GGUF file, or any part of a split one; its architecture need not be known to llmkit.
    to: the type, such as q4_k_m.
    output: the file to write, or a folder for it; by default `<model name>-<TYPE>.gguf` in the current folder.
    allow_requantize: take tensors, too, that are quantised already and are to get another type.

    The other arguments and the errors are those of `llmkit.convert`.
    """
    from llmkit.convert.gguf_source import base_name, open_source
    from llmkit.convert.quantization import plan_quantize
    from llmkit.formats.files import user_path
    from llmkit.models import resolve

    started = time.monotonic()
    recipe = parse_recipe(to)
    options = type_options(pure, tensor_types, output_type, token_embedding_type, fallback)
    how = execution(dry_run, overwrite, threads, memory, allow_nonfinite, verify, progress)
    path = user_path(os.fspath(model))
    importance = importance_from(imatrix)
    source = open_source(path if path.is_file() else resolve(os.fspath(model), want="gguf", download=False).path)
    plan = plan_quantize(
        source,
        recipe,
        options=options,
        importance=importance,
        allow_requantize=allow_requantize,
        split_size=None if split_size is None else parse_bytes(split_size),
    )
    default = Path(f"{base_name(source.path)}-{recipe.label}.gguf")
    return carry_out(plan, output_path(output, default), [*source.files, *_files_of(importance)], how, started)


def _files_of(importance: ImportanceMatrix | None) -> list[Path]:
    return [] if importance is None else [importance.path]


def load(
    model: str | os.PathLike[str], *, n_context: int | None = None, n_threads: int | None = None, **options: Any
) -> Session:
    """Load a model for running; use the session as a context manager.

    model: a .gguf file, a folder for ONNX Runtime GenAI, or anything that leads to one, as on the command line; or a
        checkpoint folder, which transformers runs as it is.
    n_context: tokens that prompt and answer may have together.
    n_threads: CPU threads; by default one per physical core that this process may use.
    options: those of the engine, `load` of `llmkit.runtimes.llamacpp`, `.ortgenai` or `.torchlm`.
    """
    from llmkit import runtimes
    from llmkit.models import resolve

    resolved = resolve(os.fspath(model), want="loadable")
    return runtimes.load(resolved.path, n_context=n_context, n_threads=n_threads, **options)
