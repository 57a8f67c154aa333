"""`llmkit models`: what is on this machine."""

from __future__ import annotations

import json

import click

from llmkit.commands.inspect import table
from llmkit.localmodels import LocalModel, list_models
from llmkit.progress import format_bytes


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the models in this folder, in its direct subfolders, and in the Hugging Face cache.

    The last column is what the other commands take as MODEL.
    """
    found = list_models()
    if as_json:
        click.echo(json.dumps([_to_dict(m) for m in found], indent=2))
        return
    if not found:
        if not ctx.obj["quiet"]:
            click.echo(
                "No models here and none in the Hugging Face cache. "
                "`llmkit convert ORG/NAME --to gguf-q4` downloads and converts one.",
                err=True,
            )
        return
    rows = [(m.name, m.kind, format_bytes(m.n_bytes), _state(m), m.label) for m in found]
    for line in table(("name", "kind", "size", "where", "model"), rows, left=5):
        click.echo(line)


def _state(m: LocalModel) -> str:
    if not m.missing:
        return m.source
    return f"{m.source}, {len(m.missing):,} file{'s' if len(m.missing) > 1 else ''} missing"


def _to_dict(m: LocalModel) -> dict[str, object]:
    """Stable keys; `kind` is checkpoint or gguf, `source` here or cache, `model` what other commands take as MODEL."""
    return {
        "name": m.name,
        "kind": m.kind,
        "path": str(m.path.resolve() if m.source == "here" else m.path),
        "bytes": m.n_bytes,
        "source": m.source,
        "repo": m.repo,
        "revision": m.revision,
        "missing": list(m.missing),
        "model": m.label,
    }
