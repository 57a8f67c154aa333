"""`llmkit recommend`: which format of a model to take."""

from __future__ import annotations

import json
from typing import Any

import click

from llmkit.commands._tables import aligned
from llmkit.models import resolve
from llmkit.progress import for_stderr, format_bytes, say
from llmkit.recommendation import DEFAULT_AGREEMENT, DEVICES, Candidate, Recommendation, expected_front, recommend


@click.command("recommend")
@click.argument("model")
@click.option("--memory", metavar="SIZE", help="Memory that it may take, such as 8GB.  [default: what is available]")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1, min_open=True),
    default=DEFAULT_AGREEMENT,
    show_default=True,
    help="Share of tokens for which it is to predict the same as the original.",
)
@click.option(
    "-c", "--context", type=click.IntRange(min=1), help="Tokens of prompt and answer.  [default: its own, at most 4096]"
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where it is to run; auto is this machine.",
)
@click.option("--measure", is_flag=True, help="Convert and run what comes near, and decide by that. Takes minutes.")
@click.option("--all", "show_all", is_flag=True, help="List all formats, not only those that no smaller one beats.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, model: str, show_all: bool, as_json: bool, **options: Any) -> None:
    """Say which format of MODEL to take on this machine, and why.

    MODEL is a checkpoint, which is downloaded if it is one of the hub, or a GGUF file of full precision. Sizes are
    exact; speeds are predicted from how fast this machine reads its memory, and qualities estimated from measurements
    of other models, unless --measure tells.
    """
    progress = for_stderr(ctx.obj["quiet"])
    found = resolve(model, want="convertible", progress=progress)
    if found.note and not ctx.obj["quiet"]:
        say(f"note: {found.note}")
    result = recommend(found, progress=progress, **options)
    if not ctx.obj["quiet"]:
        for note in result.notes:
            say(f"note: {note}")
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    click.echo(_about(result))
    click.echo()
    click.echo(_table(result, show_all))
    click.echo()
    click.echo(f"Take {result.chosen}: {result.why}.")
    for line in result.commands:
        click.echo(f"    {line}")
    for sentence in filter(None, (result.alternative, *result.elsewhere)):
        click.echo(f"{sentence[0].upper()}{sentence[1:]}.")


def _about(result: Recommendation) -> str:
    machine = result.machine
    lines = [
        f"{result.model}: {result.architecture}, {result.n_params / 1e6:,.1f} M weights; a context of "
        f"{result.n_context:,} tokens takes {format_bytes(result.cache_bytes)} in float16"
    ]
    limit = "" if result.memory is None else f"; {format_bytes(result.memory)} of memory may be taken"
    if result.device == "cpu":
        sets = f" ({', '.join(machine.instruction_sets)})" if machine.instruction_sets else ""
        speed = "" if result.bandwidth is None else f", memory is read at {result.bandwidth / 1e9:.1f} GB/s"
        lines.append(f"{machine.processor}, {machine.n_cores} cores{sets}{speed}{limit}")
    elif result.device == "cuda":
        lines.append(", ".join(gpu.name for gpu in machine.gpus) + limit)
    else:
        lines.append(f"for {result.device}, which is not measured here{limit}")
    return "\n".join(lines)


def _table(result: Recommendation, show_all: bool) -> str:
    is_measured = any(one.measured for one in result.candidates)
    head = ["", "size", "memory", "tokens/s", "mean KL", "same top", "with imatrix"]
    if is_measured:
        head += ["measured: mean KL", "same top", "tokens/s", "memory"]
    rows = [head]
    for one in result.candidates if show_all else _front(result):
        mark = " *" if one.target == result.chosen else ""
        row = [
            f"{one.target}{mark}",
            format_bytes(one.size),
            format_bytes(one.memory) + ("" if one.fits else " (too much)"),
            "" if one.tokens_per_second is None else f"~{one.tokens_per_second:,.0f}",
            "" if one.quality is None else f"~{one.quality.mean_kl:.4f}",
            "" if one.quality is None else f"~{one.quality.agreement:.1%}",
            "" if one.quality is None or not one.quality.gains else f"~{one.quality.agreement_with_importance:.1%}",
        ]
        if is_measured:
            row += _measured(one)
        rows.append(row)
    return aligned(rows)


def _measured(one: Candidate) -> list[str]:
    found = one.measured
    if found is None:
        return [""] * 4
    memory = "" if found.memory is None else format_bytes(found.memory)
    return [f"{found.mean_kl:.4f}", f"{found.agreement:.1%}", f"{found.tokens_per_second:.1f}", memory]


def _front(result: Recommendation) -> list[Candidate]:
    """The candidates that no smaller one is expected to beat, those that were measured, and the chosen one."""
    front = {*expected_front(result.candidates), result.chosen}
    return [one for one in result.candidates if one.target in front or one.measured]
