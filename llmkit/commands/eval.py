"""`llmkit eval`: how well models predict a text, and how far they are from a reference."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import click
from click.core import ParameterSource

from llmkit.commands._tables import aligned, dataset, resumable
from llmkit.evaluation import DEFAULT_CONTEXT, DEFAULT_PROTOCOL, Evaluation, ModelScores, evaluate
from llmkit.progress import for_stderr, say
from llmkit.tasks import ask, run_tasks

_NAMES = {100.0: "maximum", 50.0: "median", 0.0: "minimum"}


@click.command("eval")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--weights", is_flag=True, help="Compare the weights of a GGUF file with those of its source, the second MODEL."
)
@click.option("--choices", type=click.Path(), metavar="FILE.json", help="Ask questions with given answers instead.")
@click.option("--tasks", metavar="NAMES", help="Run tasks of lm-evaluation-harness instead, separated by commas.")
@click.option(
    "--include",
    type=click.Path(),
    multiple=True,
    metavar="FOLDER",
    help="Further tasks for --tasks, as YAML files, whose Python functions run: take none from strangers.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Most samples of each task.  [default: all]")
@click.option(
    "--few-shot", type=click.IntRange(min=0), help="Examples before each question of a task.  [default: as it says]"
)
@click.option(
    "--reference",
    metavar="MODEL",
    help="Compare distributions with those of this model, or of a stored reference: KL divergence.",
)
@click.option(
    "--text",
    type=click.Path(),
    help="UTF-8 text.  [default: 32 windows of the help texts in Python's standard library]",
)
@dataset()
@click.option(
    "--protocol",
    type=click.Choice(["sliding", "llama.cpp"]),
    default=DEFAULT_PROTOCOL,
    show_default=True,
    help="How the text is cut; with llama.cpp perplexities are those of llama-perplexity.",
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=8),
    default=DEFAULT_CONTEXT,
    show_default=True,
    help="Tokens of a window.",
)
@click.option("--chunks", type=click.IntRange(min=1), help="Most windows to use.  [default: the whole text]")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: one per core]")
@resumable()
@click.option(
    "--save-reference",
    type=click.Path(dir_okay=False),
    metavar="FILE.safetensors",
    help="Store the predictions of the reference, or of the only MODEL; --reference takes the file instead of a model.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file of --save-reference if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    weights: bool,
    choices: str | None,
    tasks: str | None,
    include: tuple[str, ...],
    limit: int | None,
    few_shot: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how well each MODEL predicts a text: perplexity, and with --reference the divergence from that model.

    MODEL is a GGUF file, a folder with an ONNX model, or a checkpoint, which runs in transformers. With a reference all
    run side by side over the same tokens. Ctrl-C keeps what is complete.

    --choices takes a list of {"question": ..., "choices": [...], "answer": 0}: each model takes the answer that it
    finds likeliest.

    --tasks hellaswag,arc_easy runs tasks of lm-evaluation-harness, which fetch their data from the Hugging Face hub, or
    such tasks as YAML files describe.

    --weights needs no runtime: `llmkit eval --weights model-Q4_K_M.gguf path/to/checkpoint` tells the error of every
    tensor.
    """
    kinds = [name for name, given in (("--weights", weights), ("--choices", choices), ("--tasks", tasks)) if given]
    if len(kinds) > 1:
        raise click.UsageError(f"{' and '.join(kinds)} exclude each other")
    if tasks is not None:
        _run_tasks(ctx, models, tasks, include, limit, few_shot, as_json, options)
        return
    if include or limit or few_shot is not None:
        raise click.UsageError("--include, --limit and --few-shot belong to --tasks")
    if choices is not None:
        _ask(ctx, models, choices, options, as_json)
        return
    if weights:
        _compare_weights(ctx, models, options, as_json)
        return
    result = evaluate(list(models), progress=for_stderr(ctx.obj["quiet"]), **options)
    if result.interrupted and not ctx.obj["quiet"]:
        say(f"note: interrupted; these are the first {result.n_windows} windows")
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    click.echo(_table(result))
    for model in result.models:
        if model.divergence is not None:
            click.echo(_details(model))


def _ask(
    ctx: click.Context,
    models: tuple[str, ...],
    file: str,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    _only(ctx, options, "--choices", "context", "threads", "resume")
    found = ask(
        list(models),
        file,
        context=options["context"] if _given(ctx, "context") else None,
        threads=options["threads"],
        resume=options["resume"],
        progress=for_stderr(ctx.obj["quiet"]),
    )
    if not ctx.obj["quiet"] and (len(found) < len(models) or any(scores.interrupted for scores in found.values())):
        say("note: interrupted; these are the first questions")
    if as_json:
        click.echo(json.dumps({name: asdict(scores) for name, scores in found.items()}, indent=2))
        return
    head = ["model", "questions", "accuracy", "by likelihood per byte"]
    rows = [
        [
            name,
            f"{scores.n_questions:,}",
            *(f"{x.value:.1%} ± {x.error:.1%}" for x in (scores.accuracy, scores.normalised)),
        ]
        for name, scores in found.items()
    ]
    click.echo(aligned([head, *rows]))


def _run_tasks(
    ctx: click.Context,
    models: tuple[str, ...],
    tasks: str,
    include: tuple[str, ...],
    limit: int | None,
    few_shot: int | None,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    _only(ctx, options, "--tasks", "context", "threads", "resume")
    found = run_tasks(
        list(models),
        [name.strip() for name in tasks.split(",") if name.strip()],
        folders=include,
        limit=limit,
        n_few_shot=few_shot,
        context=options["context"] if _given(ctx, "context") else None,
        threads=options["threads"],
        resume=options["resume"],
        progress=for_stderr(ctx.obj["quiet"]),
    )
    if as_json:
        click.echo(
            json.dumps({name: [score.to_dict() for score in scores] for name, scores in found.items()}, indent=2)
        )
        return
    head = ["model", "task", "few-shot", "samples", "metric", "value"]
    rows = [
        [
            name,
            one.task,
            str(one.n_few_shot),
            f"{one.n_samples:,}",
            one.metric if one.filter == "none" else f"{one.metric} ({one.filter})",
            f"{one.score.value:.4f}" + ("" if math.isnan(one.score.error) else f" ± {one.score.error:.4f}"),
        ]
        for name, scores in found.items()
        for one in scores
    ]
    click.echo(aligned([head, *rows]))


def _given(ctx: click.Context, option: str) -> bool:
    """Whether an option was named on the command line."""
    return ctx.get_parameter_source(option) is not ParameterSource.DEFAULT


def _only(ctx: click.Context, options: dict[str, Any], kind: str, *fitting: str) -> None:
    """UsageError for options that do not go with a kind of work."""
    wrong = [f"--{name.replace('_', '-')}" for name in options if name not in fitting and _given(ctx, name)]
    if wrong:
        named = ", ".join(f"--{name}" for name in fitting)
        raise click.UsageError(f"{' and '.join(wrong)} does not go with {kind}, which takes {named}")


def _compare_weights(ctx: click.Context, models: tuple[str, ...], options: dict[str, Any], as_json: bool) -> None:
    from llmkit.weights import compare_weights

    _only(ctx, options, "--weights", "threads")
    if len(models) != 2:
        raise click.UsageError("--weights takes two models, a GGUF file and its source")
    found = compare_weights(*models, threads=options["threads"], progress=for_stderr(ctx.obj["quiet"]))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    width = max(len(tensor.name) for tensor in found.tensors)
    click.echo(
        f"{'tensor':<{width}}  {'type':<7}  {'weights':>13}  {'relative RMS':>12}  {'cosine':>9}  {'largest':>8}"
    )
    for t in found.tensors:
        click.echo(
            f"{t.name:<{width}}  {t.type.name:<7}  {t.n_weights:>13,}  {t.relative:>12.5f}  {t.cosine:>9.6f}  "
            f"{t.largest:>8.3f}"
        )
    click.echo("errors by the root mean square of the source's weights")


def _table(result: Evaluation) -> str:
    head = ["model", "perplexity", "bits/byte", "mean KL", "same top", "tokens"]
    rows = [_row(model, result.reference) for model in result.models]
    title = f"{result.n_windows} windows of {result.context} tokens of {result.text}, protocol {result.protocol}"
    return f"{title}\n\n{aligned([head, *rows])}"


def _row(model: ModelScores, reference: str | None) -> list[str]:
    found = model.divergence
    return [
        model.name,
        f"{model.perplexity.value:.4f} ± {model.perplexity.error:.4f}",
        f"{model.bits_per_byte:.4f}",
        ("reference" if model.name == reference else "")
        if found is None
        else f"{found.mean_kl.value:.5f} ± {found.mean_kl.error:.5f}",
        "" if found is None else f"{found.same_top.value:.2%}",
        f"{model.n_tokens:,}",
    ]


def _details(model: ModelScores) -> str:
    found = model.divergence
    assert found is not None
    kl = "  ".join(f"{_NAMES.get(p, f'{p:g} %')} {value:.5f}" for p, value in found.kl_percentiles.items())
    delta = "  ".join(f"{_NAMES.get(p, f'{p:g} %')} {value:.2%}" for p, value in found.delta_p_percentiles.items())
    return "\n".join(
        [
            "",
            model.name,
            f"  KL divergence        {kl}",
            f"  ln perplexity ratio  {found.ln_ratio.value:.6f} ± {found.ln_ratio.error:.6f}, correlation of ln "
            f"perplexities {found.correlation:.2%}",
            f"  change of p          mean {found.mean_delta_p.value:.3%} ± {found.mean_delta_p.error:.3%}, RMS "
            f"{found.rms_delta_p.value:.3%} ± {found.rms_delta_p.error:.3%}",
            f"                       {delta}",
            f"  same most likely     {found.same_top.value:.3%} ± {found.same_top.error:.3%}",
        ]
    )
