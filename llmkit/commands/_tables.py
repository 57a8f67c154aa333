"""What the commands that measure have in common: tables of cells, and options."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

import click

Rows = Sequence[Sequence[str]]


def lengths(*names: str, default: int, help: str) -> Callable[[Any], Any]:
    """An option that takes numbers of tokens, such as 128,512; the command gets a tuple."""
    return click.option(*names, default=str(default), show_default=True, callback=_numbers, metavar="N,...", help=help)


def _numbers(_ctx: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers, such as 128,512") from None


def dataset() -> Callable[[Any], Any]:
    """The option for a text of the hub."""
    return click.option(
        "--dataset",
        metavar="NAME",
        help="Text from the Hugging Face hub instead: wikitext, or org/name[/configuration[/split]].",
    )


def resumable() -> Callable[[Any], Any]:
    """The option for a file of results."""
    return click.option(
        "--resume",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Keep results in FILE as they come; what it holds already is not computed again.",
    )


def aligned(rows: Rows) -> str:
    """Columns under each other, the first of them to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join(lines)


def markdown(rows: Rows) -> str:
    """The rows as a table, the first one its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def as_csv(rows: Rows) -> str:
    """The rows as CSV, with a line end behind each."""
    output = io.StringIO()
    csv.writer(output, lineterminator="\n").writerows(rows)
    return output.getvalue()
