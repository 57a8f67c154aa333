"""`llmkit convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from llmkit.api import DEFAULT_MEMORY, ConversionResult, parse_bytes, parse_target
from llmkit.api import convert as run_conversion
from llmkit.errors import LlmkitError
from llmkit.models import resolve
from llmkit.progress import for_stderr, format_bytes, say


def _checked(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], str]:
    """A click callback: a value that `parse` refuses is a usage error."""

    def check(ctx: click.Context, param: click.Parameter, value: str) -> str:
        try:
            parse(value)
        except LlmkitError as error:
            raise click.BadParameter(str(error)) from error
        return value

    return check


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "target",
    required=True,
    metavar="TARGET",
    callback=_checked(parse_target),
    help="gguf-<type>: f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0; "
    "gguf-q4, -q5, -q8 mean q4_k_m, q5_k_m, q8_0.",
)
@click.option("-o", "--output", type=click.Path(), help="Output file or folder.  [default: <model>-<TYPE>.gguf here]")
@click.option("--dry-run", is_flag=True, help="Show what would be written; read no weights, write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Worker threads.  [default: one per CPU]")
@click.option(
    "--memory",
    default=DEFAULT_MEMORY,
    show_default=True,
    callback=_checked(parse_bytes),
    help="Bound on the buffers of all threads.",
)
@click.option("--allow-nonfinite", is_flag=True, help="Convert NaN and infinite weights too.")
@click.option("--tokenizer-pre", metavar="NAME", help="llama.cpp's pre-tokenizer, if it cannot be recognised.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def convert(ctx: click.Context, /, model: str, target: str, as_json: bool, **options: Any) -> None:
    """Convert MODEL, straight from its SafeTensors files, to a GGUF file of the given type.

    MODEL is a checkpoint folder, a Hugging Face repository `org/name[@revision]`, or a word that one of the models on
    this machine is known by. Memory is bounded, no intermediate file is written, and the output appears under its name
    only when it is complete.
    """
    quiet = ctx.obj["quiet"]
    progress = for_stderr(quiet)
    resolved = resolve(model, want="checkpoint", progress=progress)
    if resolved.note and not quiet:
        say(f"note: {resolved.note}")
    result = run_conversion(resolved, target, progress=progress, **options)
    if not quiet:
        _print_notes(result)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    if result.dry_run:
        _print_tensors(result)
    plan = result.plan
    verb = "would be" if result.dry_run else "is"
    click.echo(
        f"{result.path} {verb} {format_bytes(plan.total_bytes)}: {plan.n_params / 1e6:,.1f} M parameters, "
        f"{plan.bits_per_weight:.2f} bits per weight" + ("" if result.dry_run else f", {result.seconds:.1f} s")
    )


def _print_notes(result: ConversionResult) -> None:
    plan = result.plan
    for note in plan.notes:
        say(f"note: {note}")
    for f in plan.fallbacks:
        share = 100 * f.n_elements / plan.n_params
        say(
            f"fallback: {f.n_tensors} tensors ({share:.1f} % of the weights) get {f.type.name} instead of "
            f"{f.wanted.name}, {f.n_bits / f.n_elements:.2f} instead of {f.n_bits_wanted / f.n_elements:.2f} bits per "
            f"weight: {f.reason}"
        )
    if plan.fallbacks:
        say(
            f"fallback: the file has {plan.bits_per_weight:.2f} bits per weight; without fallbacks "
            f"it would have {plan.bits_per_weight_wanted:.2f}"
        )


def _print_tensors(result: ConversionResult) -> None:
    width = max(len(t.name) for t in result.plan.tensors)
    click.echo(f"{'tensor':<{width}}  {'shape':>16}  {'from':>5}  {'type':<5}  {'bytes':>14}")
    for t in result.plan.tensors:
        source = "-" if isinstance(t.source, tuple) else t.source.dtype
        shape = " x ".join(str(n) for n in t.shape)
        fallback = f"  (not {t.wanted.name})" if t.wanted is not t.type else ""
        click.echo(f"{t.name:<{width}}  {shape:>16}  {source:>5}  {t.type.name:<5}  {t.nbytes:>14,}{fallback}")
