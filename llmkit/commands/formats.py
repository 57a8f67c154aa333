"""`llmkit formats`: the deployment formats of the field, and which one to take."""

from __future__ import annotations

import json
from typing import Any

import click

from llmkit.commands.inspect import table
from llmkit.deciding import TREE, Decision, Question
from llmkit.deploymentformats import FORMATS, DeploymentFormat
from llmkit.measuredformats import FormatMeasurements, measure_formats, read_measurements
from llmkit.progress import for_stderr, say


@click.command("formats")
@click.option("--decide", is_flag=True, help="Ask a few questions, and end in one command to run.")
@click.option(
    "--measure",
    "model",
    metavar="MODEL",
    help="Convert MODEL to every format that is written and run here, measure each, and keep the figures.",
)
@click.option(
    "--only", multiple=True, metavar="TARGET", help="With --measure: this target; may be given several times."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="With --measure: CPU threads.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    decide: bool,
    model: str | None,
    only: tuple[str, ...],
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare deployment formats: what each is for, whether llmkit reads, writes and runs it on this machine now.

    Sizes are of the form that TARGET names, as a share of the weights in 16 bits. Speed and KL divergence are those
    that --measure found on this machine.
    """
    if decide:
        _decide()
        return
    if only and model is None:
        raise click.UsageError("--only belongs to --measure")
    if model is None:
        found = read_measurements()
    else:
        found = measure_formats(model, only, threads=threads, progress=for_stderr(ctx.obj["quiet"]), note=say)
    if as_json:
        click.echo(json.dumps(_to_dict(found), indent=2))
        return
    head, *rows = _rows(found)
    for line in table(head, rows, left=2):
        click.echo(line)
    if found is not None:
        click.echo(f"tokens/s and KL: {found.model} on {found.machine}, {found.date}")
    click.echo()
    for one in FORMATS:
        click.echo(f"{one.name}: {_about(one)}")


def _rows(found: FormatMeasurements | None) -> list[tuple[str, ...]]:
    measured = ("tokens/s", "mean KL") if found else ()
    rows: list[tuple[str, ...]] = [("format", "target", "reads", "writes", "runs", "size", *measured)]
    for one in FORMATS:
        size = "-" if one.size is None else f"{one.size:.2f}"
        row = (_ability(one.writes, one.is_written_here), _ability(one.runs, one.runs_here), size)
        figures = None if found is None else found.of(one)
        numbers = ("-", "-") if figures is None else (f"{figures.tokens_per_second:.1f}", f"{figures.mean_kl:.4f}")
        rows.append((one.name, one.target or "-", "yes" if one.reads else "-", *row, *(numbers if found else ())))
    return rows


def _about(one: DeploymentFormat) -> str:
    """What a format is for and where it runs, what is missing here, and what else to know."""
    missing = [f"here it needs pip install 'llmkit[{extra}]'" for extra in one.missing_extras]
    hardware = "" if one.hardware == "-" else one.hardware
    return "; ".join(filter(None, (one.purpose, hardware, "legacy" if one.legacy else "", *missing, one.note)))


def _ability(packages: tuple[str, ...] | None, is_here: bool) -> str:
    if packages is None:
        return "-"
    return "yes" if is_here else "no"


def _to_dict(found: FormatMeasurements | None) -> dict[str, Any]:
    """Stable keys; `writes` and `runs` are null where llmkit does not do that, else whether it can here and now."""
    return {
        "formats": [
            {
                "name": one.name,
                "target": one.target,
                "purpose": one.purpose,
                "hardware": one.hardware,
                "reads": one.reads,
                "writes": None if one.writes is None else one.is_written_here,
                "runs": None if one.runs is None else one.runs_here,
                "missing_extras": list(one.missing_extras),
                "size": one.size,
                "legacy": one.legacy,
                "note": one.note,
                "measured": _figures(one, found),
            }
            for one in FORMATS
        ],
        "measured": None if found is None else found.about(),
    }


def _figures(one: DeploymentFormat, found: FormatMeasurements | None) -> dict[str, Any] | None:
    figures = None if found is None else found.of(one)
    if figures is None:
        return None
    return {
        "target": figures.target,
        "tokens_per_second": figures.tokens_per_second,
        "mean_kl": figures.mean_kl,
        "same_top": figures.same_top,
        "bytes": figures.size,
    }


def _decide() -> None:
    place: Question | Decision = TREE
    while isinstance(place, Question):
        click.echo(place.text)
        for word, (meaning, _) in place.answers.items():
            click.echo(f"  {word:<12}{meaning}")
        word = click.prompt("Answer", type=click.Choice(list(place.answers)), show_choices=False)
        place = place.answers[word][1]
        click.echo()
    click.echo(place.command)
    click.echo(f"  because: {place.reason}")
    if place.otherwise:
        click.echo(f"  or: {place.otherwise}")
