"""`llmkit inspect`: what a model file or folder holds."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from llmkit.formats.files import user_path
from llmkit.inspection import Inspection, inspect_path
from llmkit.progress import format_bytes

_KINDS = {
    "gguf": "GGUF file",
    "safetensors": "SafeTensors file",
    "pytorch": "PyTorch checkpoint",
    "safetensors-folder": "folder of SafeTensors files",
    "checkpoint": "Hugging Face checkpoint",
    "onnx": "folder for ONNX Runtime GenAI",
    "exported": "folder of a deployment format",
    "paddle": "PaddlePaddle parameters (older format)",
    "mxnet": "MXNet parameters (older format)",
    "caffe": "Caffe model (older format)",
    "tensorflow": "TensorFlow checkpoint (older format)",
}
_TEMPLATE_LINES = 5


@click.command()
@click.argument("model", metavar="FILE_OR_DIR")
@click.option("--tensors", is_flag=True, help="List every tensor: name, type, shape, bytes, offset in its file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def inspect(ctx: click.Context, model: str, tensors: bool, as_json: bool) -> None:
    """Show what a GGUF, SafeTensors or PyTorch file, a Hugging Face checkpoint or the folder of ONNX or
    another deployment format holds.

    Files of older formats, too: PaddlePaddle (.pdiparams, .pdparams), MXNet (.params), Caffe (.caffemodel) and
    TensorFlow checkpoints (.index). New models come as SafeTensors; convert --to safetensors takes the tensors out.

    Reads headers and configuration only, never weights. Instead of a path, a repository org/name of the Hugging Face
    cache will do, or a word that fits one model in this folder, its direct subfolders or that cache; nothing is
    downloaded.
    """
    path = user_path(model)
    if not path.exists() and not _is_older(path):
        from llmkit.models import resolve

        found = resolve(model, download=False)
        if found.note and not ctx.obj["quiet"]:
            click.echo(f"note: {found.note}", err=True)
        path = found.path
    inspection = inspect_path(path)
    if as_json:
        click.echo(json.dumps(inspection.to_dict(with_tensors=tensors), indent=2))
        return
    for line in render(inspection, tensors=tensors, width=_width()):
        click.echo(line)


def _is_older(path: Path) -> bool:
    """Whether it is what the names of a TensorFlow checkpoint's files begin with."""
    from llmkit.formats.older import find_older

    return find_older(path) is not None


def _width() -> int | None:
    """Columns of the terminal; None in a pipe, where nothing is cut."""
    return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def render(inspection: Inspection, *, tensors: bool = False, width: int | None = None) -> list[str]:
    """The report as lines, cut to `width` columns if given. Text from the file cannot steer the terminal."""
    facts = [(label, value) for label, value in _facts(inspection) if value]
    indent = max(len(label) for label, _ in facts) + 2
    lines = [f"{label:<{indent}}{value}" for label, value in facts]
    lines += ["", *_type_lines(inspection)]
    if inspection.templates:
        lines += ["", *_template_lines(inspection)]
    if tensors:
        lines += ["", *_tensor_lines(inspection)]
    lines += [f"note: {note}" for note in inspection.notes]
    return [_cut(printable(line), width) for line in lines]


def printable(text: str) -> str:
    """`text` with control characters, and whatever else is not printable, shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _facts(i: Inspection) -> list[tuple[str, str]]:
    h, g, t = i.hyperparameters, i.gguf, i.tokenizer
    kind = _KINDS[i.kind] + (f", version {g.version}" if g else "")
    if i.kind == "exported":
        kind = f"{i.metadata.get('title')}, {i.metadata.get('precision')}, made by llmkit"
    if g and g.n_parts > 1:
        kind += f", split into {g.n_parts} parts"
    size = f"{format_bytes(i.n_bytes)} ({i.n_bytes:,} bytes)"
    if len(i.files) > 1:
        size += f" in {len(i.files)} files"
    bits = i.bits_per_weight
    return [
        ("path", str(i.path)),
        ("what", kind),
        ("architecture", _architecture(i)),
        ("name", i.name or ""),
        ("parameters", f"{short_count(i.n_params)} ({i.n_params:,}) in {len(i.tensors):,} tensors"),
        ("file type", (g.file_type or "") if g else ""),
        ("bits per weight", f"{bits:.2f}" if bits else ""),
        ("size", size),
        ("context", f"{h.n_context:,} tokens" if h.n_context else ""),
        ("layers", _number(h.n_layers)),
        ("embedding", _number(h.n_embd)),
        ("feed forward", _number(h.n_ff)),
        ("heads", _heads(i)),
        ("experts", f"{h.n_experts}, {h.n_experts_used or '?'} used per token" if h.n_experts else ""),
        ("rope", ", ".join(filter(None, (f"base {h.rope_base:,g}" if h.rope_base else "", h.rope_scaling)))),
        ("vocabulary", f"{h.n_vocab:,} tokens" if h.n_vocab else ""),
        ("tokenizer", _tokenizer(i) if t else ""),
        ("chat template", _template_names(i) if t or i.templates else ""),
    ]


def _architecture(i: Inspection) -> str:
    if i.architecture and i.model_class:
        return f"{i.architecture} ({i.model_class})"
    return i.architecture or i.model_class or ""


def _number(value: int | tuple[int, ...] | None) -> str:
    """One number, or the range where layers differ."""
    if isinstance(value, tuple):
        return f"{min(value):,} to {max(value):,}"
    return "" if value is None else f"{value:,}"


def _heads(i: Inspection) -> str:
    heads, kv = _number(i.hyperparameters.n_heads), _number(i.hyperparameters.n_kv_heads)
    return f"{heads} for queries, {kv} for keys and values" if heads and kv else heads


def _tokenizer(i: Inspection) -> str:
    t = i.tokenizer
    assert t is not None
    parts = [f"{t.model or 'unknown'} ({t.file})" if t.file else t.model or "kind not named"]
    if t.pre:
        parts.append(f"pre-tokenizer {t.pre}")
    if t.n_tokens and t.n_tokens != i.hyperparameters.n_vocab:
        parts.append(f"{t.n_tokens:,} tokens")
    parts += [f"{name} {value}" for name, value in (("BOS", t.bos), ("EOS", t.eos)) if value is not None]
    return ", ".join(parts)


def _template_names(i: Inspection) -> str:
    if not i.templates:
        return "none"
    named = [t.name for t in i.templates if t.name != "default"]
    default = "yes" if len(named) < len(i.templates) else "no default"
    return f"{default}, named: {', '.join(named)}" if named else default


def _type_lines(i: Inspection) -> list[str]:
    rows = [
        (
            t.type,
            f"{t.n_tensors:,}",
            f"{t.n_params:,}",
            f"{t.n_bytes:,}",
            f"{t.bits_per_weight:.2f}" if t.bits_per_weight else "-",
        )
        for t in i.types
    ]
    return table(("type", "tensors", "parameters", "bytes", "bits/weight"), rows, left=1)


def _template_lines(i: Inspection) -> list[str]:
    template = i.templates[0]
    text = template.text.splitlines()
    lines = [f"chat template {template.name!r}, {len(template.text):,} characters:"]
    lines += [f"  {_cut(line, 100)}" for line in text[:_TEMPLATE_LINES]]
    if len(text) > _TEMPLATE_LINES:
        more = len(text) - _TEMPLATE_LINES
        lines.append(f"  … {more:,} more line{'s' if more > 1 else ''}")
    return lines


def _tensor_lines(i: Inspection) -> list[str]:
    several = len(i.files) > 1
    rows = [
        (
            t.name,
            t.dtype,
            " x ".join(map(str, t.shape)) or "scalar",
            f"{t.nbytes:,}",
            f"{t.offset:,}" if t.offset >= 0 else "-",
        )
        + ((t.path.name,) if several else ())
        for t in i.tensors
    ]
    header = ("tensor", "type", "shape", "bytes", "offset") + (("file",) if several else ())
    return table(header, rows, left=2)


def _offset(offset: int) -> str:
    return f"{offset:,}" if offset >= 0 else "-"


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, left: int) -> list[str]:
    """Aligned columns: the first `left` to the left, the others to the right."""
    cells = [tuple(printable(cell) for cell in row) for row in (header, *rows)]
    widths = [max(len(row[c]) for row in cells) for c in range(len(header))]
    lines = []
    for row in cells:
        aligned = [
            f"{cell:<{w}}" if c < left else f"{cell:>{w}}" for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return lines


def short_count(n: int) -> str:
    """Parameters as models are named: 134.5 M, 1.08 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}" if unit == "B" else f"{n / size:.1f} {unit}"
    return str(n)


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else line[: width - 1] + "…"
