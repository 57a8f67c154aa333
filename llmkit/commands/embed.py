"""`llmkit embed`: turn texts into vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from llmkit.commands._generation import input_lines, load_model, notes


@click.command()
@click.argument("model")
@click.option(
    "-p",
    "--text",
    "texts",
    multiple=True,
    help="A text; may be given several times. Without it, every line of standard input is one.",
)
@click.option("--pooling", type=click.Choice(["mean", "cls", "last"]), help="[default: what the file says]")
@click.option("--no-normalize", is_flag=True, help="Leave vectors as long as they are, instead of making them 1 long.")
@click.option("--context", "--ctx", "n_context", type=click.IntRange(1, 2**31 - 1), help="Tokens a text may have.")
@click.option("--threads", "n_threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per text.")
@click.pass_context
def embed(
    ctx: click.Context,
    model: str,
    texts: tuple[str, ...],
    pooling: str | None,
    no_normalize: bool,
    n_context: int | None,
    n_threads: int | None,
    as_json: bool,
) -> None:
    """Turn texts into vectors with MODEL, whose products tell how near the texts' meanings are.

    MODEL is a GGUF file, a folder with exactly one, or a word that matches one here.

    Prints one line per text: its vector's numbers, or with --json an object.
    """
    note = notes(ctx.obj["quiet"])
    given: Iterator[str] = iter(texts) if texts else input_lines()
    with load_model(model, note, n_context=n_context, n_threads=n_threads, pooling=pooling) as session:
        for text in given:
            vector = session.embed(text, normalize=not no_normalize)
            if as_json:
                numbers = [float(f"{number:.8g}") for number in vector]
                click.echo(json.dumps({"text": text, "embedding": numbers}, ensure_ascii=False))
            else:
                click.echo(" ".join(f"{number:.8g}" for number in vector))
