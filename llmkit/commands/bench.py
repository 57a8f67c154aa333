"""`llmkit bench`: how fast models are."""

from __future__ import annotations

import json
from typing import Any

import click

from llmkit.benchmark import DEFAULT_GENERATED, DEFAULT_PROMPT, DEFAULT_REPETITIONS, Benchmark, bench
from llmkit.commands._tables import aligned, as_csv, lengths, markdown, resumable
from llmkit.progress import for_stderr, say

_HEAD = ("model", "size", "engine", "threads", "test", "tokens/s", "load", "first token", "memory")


@click.command("bench")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@lengths("-p", "--prompt", default=DEFAULT_PROMPT, help="Lengths of prompts; 0 for none.")
@lengths("-n", "--generated", default=DEFAULT_GENERATED, help="Numbers of tokens to pass one by one; 0 for none.")
@lengths("-d", "--depth", "depths", default=0, help="Tokens that the cache holds before.")
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    default=DEFAULT_REPETITIONS,
    show_default=True,
    help="Counted runs of every test, after one that does not count.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: one per core]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where ONNX models and checkpoints run.")
@resumable()
@click.option("--json", "form", flag_value="json", help="Print JSON, every run included.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
@click.option("--md", "form", flag_value="md", help="Print a table for Markdown.")
@click.pass_context
def command(ctx: click.Context, /, models: tuple[str, ...], form: str | None, **options: Any) -> None:
    """Measure how fast each MODEL is: prompts (pp512), tokens one by one (tg128), loading, memory.

    MODEL is a GGUF file, a folder with an ONNX model, or a checkpoint, which runs in transformers. Each runs in a
    process of its own, one after the other. Ctrl-C keeps what is complete.
    """
    quiet = ctx.obj["quiet"]
    result = bench(list(models), progress=for_stderr(quiet), **options)
    if not quiet and result.interrupted:
        say("note: interrupted; tests or models are missing")
    if form == "json":
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    rows = _rows(result)
    if form == "csv":
        click.echo(as_csv([_HEAD, *rows]), nl=False)
    elif form == "md":
        click.echo(markdown([_HEAD, *rows]))
    else:
        click.echo(aligned([_HEAD, *rows]))
        click.echo(f"{result.machine}; runs: {result.repetitions}; {_named(result.versions)}")


def _rows(result: Benchmark) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for model in result.models:
        memory = "" if model.peak_resident is None else f"{model.peak_resident / 1e6:,.0f} MB"
        first = "" if model.first_token_seconds is None else f"{model.first_token_seconds:.2f} s"
        engine = model.engine if model.device == "cpu" else f"{model.engine}, {model.device}"
        found += [
            (model.name, f"{model.size / 1e6:,.1f} MB", engine, str(model.n_threads), test.name,
             f"{test.mean:.2f} ± {test.spread:.2f}", f"{model.load_seconds:.2f} s", first, memory)
            for test in model.tests
        ]  # fmt: skip
    return found


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
