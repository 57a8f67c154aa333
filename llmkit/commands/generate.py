"""`llmkit generate`: continue a text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from click.core import ParameterSource

from llmkit.chat import speed
from llmkit.commands._generation import lenient_output, load_model, notes, read_prompt, sampling_options
from llmkit.protocols import SamplingOptions


@click.command()
@click.argument("model")
@click.option(
    "-p",
    "--prompt",
    required=True,
    help="The text to continue. Standard input is not read, unless this is `-`: it is the text.",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Most tokens to generate.",
)
@sampling_options
@click.pass_context
def generate(
    ctx: click.Context,
    model: str,
    prompt: str,
    sampling: SamplingOptions,
    n_context: int | None,
    n_threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Continue a text with MODEL, without any chat template.

    MODEL is a GGUF file, a folder with exactly one, or a word that matches one here.

    Prints the continuation only. Special tokens spelled out in the prompt (`<|im_start|>`) count as such.
    """
    note = notes(ctx.obj["quiet"])
    text = read_prompt(prompt)
    lenient_output()
    with load_model(model, note, n_context=n_context, device=device, n_threads=n_threads) as session:
        parts = []
        for part in session.generate(text, sampling):
            parts.append(part)
            if not as_json:
                sys.stdout.write(part)
                sys.stdout.flush()
        if as_json:
            click.echo(json.dumps({"text": "".join(parts), **asdict(session.stats)}, ensure_ascii=False))
        elif not "".join(parts).endswith("\n"):
            click.echo()
        if session.stats.stop_reason == "context":
            note(f"(the context of {session.info.n_context} tokens is full: --context gives more room)")
        unasked = ctx.get_parameter_source("max_tokens") is ParameterSource.DEFAULT
        if session.stats.stop_reason == "length" and unasked:
            note(f"(stopped after {sampling.max_tokens} tokens, the default: -n gives more)")
        note(speed(session.stats))
