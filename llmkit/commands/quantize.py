"""`llmkit quantize`: a GGUF file becomes one of another type."""

from __future__ import annotations

from typing import Any

import click

from llmkit.api import quantize as run_quantisation
from llmkit.arguments import parse_recipe
from llmkit.commands._conversion import TYPES, checked, conversion_options, print_result
from llmkit.formats.files import user_path
from llmkit.models import resolve
from llmkit.progress import for_stderr, say


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "type",
    required=True,
    metavar="TYPE",
    callback=checked(parse_recipe),
    help=f"{TYPES}; q4, q5, q8 mean q4_k_m, q5_k_m, q8_0.",
)
@conversion_options
@click.option(
    "--allow-requantize", is_flag=True, help="Take tensors, too, that are quantised already, at a loss of quality."
)
@click.pass_context
def quantize(ctx: click.Context, /, model: str, type: str, as_json: bool, verbose: bool, **options: Any) -> None:
    """Quantise MODEL, a GGUF file, to a GGUF file of the given type.

    MODEL is a GGUF file, any part of a split one, or a word that one of the GGUF models on this machine is known by; it
    should be in F32, F16 or BF16, and may be of any architecture. The metadata is kept, and the file is the one that
    llama-quantize writes. Memory is bounded, and the output appears under its name only when it is complete.
    """
    quiet = ctx.obj["quiet"]
    path = user_path(model)
    if not path.is_file():
        resolved = resolve(model, want="gguf", download=False)
        path = resolved.path
        if resolved.note and not quiet:
            say(f"note: {resolved.note}")
    result = run_quantisation(path, type, progress=for_stderr(quiet), **options)
    print_result(result, quiet=quiet, verbose=verbose, as_json=as_json)
