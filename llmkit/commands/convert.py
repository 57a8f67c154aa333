"""`llmkit convert`: a checkpoint becomes a GGUF file, a GGUF file a checkpoint, an older file one of SafeTensors."""

from __future__ import annotations

from typing import Any

import click

from llmkit.api import convert as run_conversion
from llmkit.arguments import AdapterTarget, CheckpointTarget, Target, parse_target
from llmkit.commands._conversion import TYPES, checked, conversion_options, print_result
from llmkit.formats.files import user_path
from llmkit.models import ResolvedModel, Wanted, resolve
from llmkit.progress import for_stderr, say
from llmkit.protocols import Progress


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "target",
    required=True,
    metavar="TARGET",
    callback=checked(parse_target),
    help=f"gguf-<type>: {TYPES}; gguf-q4, -q5, -q8 mean q4_k_m, q5_k_m, q8_0. "
    "onnx-fp32, -fp16, -int8, -int4: a folder for ONNX Runtime GenAI. safetensors[-f32|-f16|-bf16]: a checkpoint "
    "folder, from a GGUF file; safetensors: one file, from one of an older format. gguf-lora: from a LoRA adapter's "
    "folder. "
    "Other formats, each a folder: torch, torchscript, openvino-fp16, -fp32, -int8, -int4, stablehlo, iree, "
    "savedmodel, executorch, litert[-int8], litertlm[-int8], coreml[-int4], tensorrt, "
    "onnx-standard.",
)
@conversion_options
@click.option("--tokenizer-pre", metavar="NAME", help="llama.cpp's pre-tokenizer, if it cannot be recognised.")
@click.option(
    "--lora",
    multiple=True,
    metavar="PATH[:SCALE]",
    help="LoRA adapter, as PEFT saves it, to be added to the weights; may be given several times.",
)
@click.option(
    "--recipe",
    type=click.Choice(["quality"]),
    help="Of onnx-int4: more bits where they help most, 25 % more in all.  [default: all the same]",
)
@click.option(
    "--block-size", type=int, metavar="N", help="Of ONNX: weights that share a scale, 16 to 256.  [default: 32]"
)
@click.option(
    "--symmetric/--zero-points",
    default=None,
    help="Of ONNX: whether blocks do without zero points.  [default: they do]",
)
@click.option(
    "--accuracy-level",
    type=int,
    metavar="N",
    help="Of ONNX: 4 multiplies activations of 8 bits, 1 computes in float32.  [default: 4]",
)
@click.option(
    "--ep",
    "provider",
    type=click.Choice(["cpu", "cuda", "dml", "webgpu"]),
    help="Of ONNX: the execution provider that the model is for.  [default: cpu]",
)
@click.option(
    "--context",
    type=click.IntRange(2),
    metavar="N",
    help="Of other deployment formats: positions of the cache.  [default: as trained, at most 2048]",
)
@click.option("--base", metavar="MODEL", help="For gguf-lora: the model that the adapter is for, if not what it names.")
@click.pass_context
def convert(ctx: click.Context, /, model: str, target: str, as_json: bool, verbose: bool, **options: Any) -> None:
    """Convert MODEL, straight from its SafeTensors files, to a GGUF file or an ONNX folder, or a GGUF file back.

    MODEL is a checkpoint folder, a Hugging Face repository `org/name[@revision]`, or a word that one of the models on
    this machine is known by; a GGUF file, if TARGET is safetensors, and for ONNX if you like. If TARGET is safetensors,
    it may be a file of an older format, too, whose tensors are taken out as they are: PyTorch (.bin, .pt, .pth, .ckpt),
    PaddlePaddle (.pdiparams, .pdparams), MXNet (.params), Caffe (.caffemodel), TensorFlow checkpoints (.index). These
    are legacy formats: weights are exchanged as SafeTensors now, and models to be run as GGUF or ONNX.

    Memory is bounded, no intermediate file is written, and the output appears under its name only when it is complete.
    """
    quiet = ctx.obj["quiet"]
    progress = for_stderr(quiet)
    found = _resolve(model, parse_target(target), quiet, progress)
    result = run_conversion(found, target, progress=progress, **options)
    print_result(result, quiet=quiet, verbose=verbose, as_json=as_json)


def _kind_for(target: Target) -> Wanted:
    from llmkit.convert.frameworks.base import FrameworkTarget
    from llmkit.convert.onnx.recipes import OnnxRecipe

    if isinstance(target, OnnxRecipe | FrameworkTarget):
        return "convertible"
    return "gguf" if isinstance(target, CheckpointTarget) else "checkpoint"


def _resolve(model: str, target: Target, quiet: bool, progress: Progress) -> str | ResolvedModel:
    """What MODEL names, of the kind that the target is made of."""
    from llmkit.formats.older import find_older

    if isinstance(target, AdapterTarget):
        return model
    back = isinstance(target, CheckpointTarget)
    if back and find_older(user_path(model)) is not None:
        return model
    resolved = resolve(model, want=_kind_for(target), download=not back, progress=progress)
    if resolved.note and not quiet:
        say(f"note: {resolved.note}")
    return resolved
