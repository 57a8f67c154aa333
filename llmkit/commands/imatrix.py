"""`llmkit imatrix`: what a text shows about which columns of a model's weights count."""

from __future__ import annotations

import json
from typing import Any

import click

from llmkit.importance import DEFAULT_CHUNK, DEFAULT_OUTPUT, ImportanceResult, compute_importance
from llmkit.models import resolve
from llmkit.progress import for_stderr, say

_SHOWN = 8


@click.command()
@click.argument("model")
@click.option("--text", required=True, type=click.Path(), help="UTF-8 text of the kind the model will work on.")
@click.option(
    "-o", "--output", type=click.Path(), default=DEFAULT_OUTPUT, show_default=True, help="Output file or folder."
)
@click.option("--chunks", type=click.IntRange(min=1), help="Most chunks to use.  [default: the whole text]")
@click.option(
    "-c",
    "--context",
    "chunk_size",
    type=click.IntRange(min=16),
    default=DEFAULT_CHUNK,
    show_default=True,
    help="Tokens of a chunk.",
)
@click.option("--process-output", is_flag=True, help="Include the output matrix.")
@click.option(
    "--products",
    type=click.IntRange(2, 1 << 20),
    metavar="COLUMNS",
    help="Also note how so many neighbouring columns go together, such as 128: onnx-int4 gets better by it.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: one per core]")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def imatrix(ctx: click.Context, /, model: str, as_json: bool, **options: Any) -> None:
    """Compute an importance matrix: run a text through MODEL and note how large each column's activations are.

    MODEL is a GGUF file, best in the precision it was trained in, or a checkpoint, which is then converted to bf16 in
    a temporary file. `llmkit convert` and `llmkit quantize` take the result with --imatrix, and so does llama-quantize.
    """
    quiet = ctx.obj["quiet"]
    progress = for_stderr(quiet)
    resolved = resolve(model, progress=progress)
    if resolved.note and not quiet:
        say(f"note: {resolved.note}")
    result = compute_importance(resolved, progress=progress, **options)
    if not quiet:
        for note in _notes(result):
            say(f"note: {note}")
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    click.echo(
        f"{result.path} has the importance of {result.n_entries} tensors: {result.n_chunks} chunks of "
        f"{result.chunk_size} tokens, perplexity {result.perplexity:.3f} ± {result.perplexity_error:.3f}, "
        f"{result.seconds:.1f} s"
    )


def _notes(result: ImportanceResult) -> list[str]:
    notes = list(result.notes)
    if result.missing:
        notes.append(f"no data for {_listed(result.missing)}: quantised without importance")
    if result.partial:
        named = tuple(f"{name} ({without} of {experts})" for name, (without, experts) in result.partial.items())
        notes.append(f"no token reached some experts of {_listed(named)}; a longer or more varied text may")
    return notes


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more (--json lists them)" if more > 0 else "")
