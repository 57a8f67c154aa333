"""`llmkit compare`: quality and speed of models side by side, with a report to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from llmkit.benchmark import DEFAULT_GENERATED, DEFAULT_PROMPT
from llmkit.commands._tables import aligned, dataset, lengths, markdown, resumable
from llmkit.comparison import DEFAULT_REPETITIONS, compare
from llmkit.evaluate.records import ComparedModel, Comparison
from llmkit.progress import for_stderr, say


@click.command("compare")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--reference", metavar="MODEL", help="The model that the others are to be like.")
@click.option("--report", type=click.Path(dir_okay=False), metavar="FILE.html", help="Also write a page with plots.")
@click.option("--overwrite", is_flag=True, help="Replace the report if it exists.")
@click.option("--text", type=click.Path(), help="UTF-8 text.  [default: the help texts in Python's standard library]")
@dataset()
@click.option("-c", "--context", type=click.IntRange(min=8), default=512, show_default=True, help="Tokens of a window.")
@click.option("--chunks", type=click.IntRange(min=1), help="Most windows to use.  [default: the whole text]")
@lengths("-p", "--prompt", default=DEFAULT_PROMPT, help="Lengths of prompts to time; 0 for none.")
@lengths("-n", "--generated", default=DEFAULT_GENERATED, help="Numbers of tokens to time one by one; 0 for none.")
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    default=DEFAULT_REPETITIONS,
    show_default=True,
    help="Counted runs of every timing.",
)
@click.option(
    "--question",
    "questions",
    multiple=True,
    metavar="TEXT",
    help="What all models answer; may be given several times.  [default: two questions]",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: one per core]")
@resumable()
@click.option("--json", "form", flag_value="json", help="Print JSON.")
@click.option("--md", "form", flag_value="md", help="Print a table for Markdown.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    report: str | None,
    overwrite: bool,
    form: str | None,
    **options: Any,
) -> None:
    """Compare MODELs: perplexity, divergence from the reference, size, speed, memory, and what they answer.

    MODEL is a GGUF file, a folder with an ONNX model, or a checkpoint, which runs in transformers. All run side by side
    over the same tokens, then one after the other for the timings.
    """
    if report is not None:
        from llmkit.evaluate.report import require_plots
        from llmkit.formats.output import check_output

        require_plots()
        check_output(Path(report), overwrite=overwrite)
    if not options["questions"]:
        options.pop("questions")
    result = compare(list(models), progress=for_stderr(ctx.obj["quiet"]), **options)
    if result.interrupted and not ctx.obj["quiet"]:
        say("note: interrupted; what was not measured is missing")
    if report is not None:
        _write(Path(report), result, overwrite)
    if form == "json":
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    rows = _rows(result)
    if form == "md":
        click.echo(markdown(rows))
        return
    click.echo(aligned(rows))
    if plot := _plot(result):
        click.echo(f"\n{plot}")


def _write(path: Path, result: Comparison, overwrite: bool) -> None:
    from llmkit.evaluate.report import to_html
    from llmkit.formats.output import publish

    page = to_html(result).encode()
    with publish(path, len(page), overwrite=overwrite) as output:
        output.write_at(page, 0)


def _rows(result: Comparison) -> list[tuple[str, ...]]:
    tests = tuple(dict.fromkeys(name for model in result.models for name in model.speeds))
    head = ("model", "MB", "perplexity", "mean KL", "KL 99 %", "same top", *tests, "memory")
    return [head, *(_row(model, tests) for model in result.models)]


def _row(model: ComparedModel, tests: tuple[str, ...]) -> tuple[str, ...]:
    return (
        model.name,
        f"{model.size / 1e6:,.1f}",
        f"{model.perplexity[0]:.3f}",
        ("reference" if model.is_reference else "") if model.mean_kl is None else f"{model.mean_kl[0]:.5f}",
        f"{model.kl_percentiles[99.0]:.4f}" if model.kl_percentiles else "",
        "" if model.same_top is None else f"{model.same_top:.1%}",
        *(
            f"{model.speeds[test][0]:.1f} ± {model.speeds[test][1]:.1f}" if test in model.speeds else ""
            for test in tests
        ),
        "" if model.memory is None else f"{model.memory / 1e6:,.0f} MB",
    )


def _plot(result: Comparison) -> str:
    from llmkit.evaluate.records import front_of
    from llmkit.evaluate.textplot import scatter

    points = {m.name: (m.size / 1e6, m.mean_kl[0]) for m in result.models if m.mean_kl is not None}
    if len(points) < 2:
        return ""
    legend = "[ ]: no smaller model has a smaller divergence"
    return f"{scatter(points, front_of(result.models), labels=('MB', 'mean KL'))}\n{legend}"
