"""Placing a model's tensors in its output files: one, or the parts of a split model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmkit.convert.plan import PlannedFile, PlannedTensor
from llmkit.errors import UnsupportedError
from llmkit.formats.gguf import Value, i32, plan_layout, u16
from llmkit.formats.gguf.limits import DEFAULT_ALIGNMENT, padded

_MAX_FILES = 0xFFFF  # split.count is a uint16


def lay_out(
    metadata: Mapping[str, Value],
    tensors: Sequence[PlannedTensor],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    split_size: int | None = None,
) -> tuple[PlannedFile, ...]:
    """Give every tensor its file and offset, in the given order.

    With `split_size`, a file ends before the tensor that would bring its tensor data above that many bytes; a larger
    tensor has a file of its own. As llama.cpp's gguf-split does (tools/gguf-split/gguf-split.cpp), the first file
    carries all metadata, the others only say which part they are. What fits one file is not split.

    Raises UnsupportedError for what GGUF cannot hold, and for more than 65,535 files.
    """
    groups = _groups(tensors, alignment, split_size)
    if len(groups) == 1:
        return (_file(metadata, groups[0], alignment),)
    if len(groups) > _MAX_FILES:
        raise UnsupportedError(f"{len(groups):,} files; a split model has at most {_MAX_FILES:,}: use larger parts")
    files = []
    for number, group in enumerate(groups):
        part = {
            "split.no": u16(number),
            "split.tensors.count": i32(len(tensors)),
            "split.count": u16(len(groups)),
        }
        files.append(_file({**metadata, **part} if number == 0 else part, group, alignment))
    return tuple(files)


def file_paths(output: Path, files: Sequence[PlannedFile]) -> list[Path]:
    """Where the files of a plan go.

    Those with names go into the folder `output`; else it is `output` itself, or `<stem>-00001-of-00003.gguf` and so on
    for a split model.
    """
    if files[0].name:
        return [output / file.name for file in files]
    if len(files) == 1:
        return [output]
    stem = output.stem if output.suffix.lower() == ".gguf" else output.name
    return [output.with_name(f"{stem}-{number:05d}-of-{len(files):05d}.gguf") for number in range(1, len(files) + 1)]


def _groups(tensors: Sequence[PlannedTensor], alignment: int, split_size: int | None) -> list[list[PlannedTensor]]:
    if split_size is None:
        return [list(tensors)]
    groups: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        n_bytes = padded(tensor.nbytes, alignment)
        if groups[-1] and filled + n_bytes > split_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += n_bytes
    return groups


def _file(metadata: Mapping[str, Value], tensors: Sequence[PlannedTensor], alignment: int) -> PlannedFile:
    layout = plan_layout(metadata, [(t.name, t.ggml_type, t.shape) for t in tensors], alignment)
    placed = tuple(replace(t, offset=offset) for t, offset in zip(tensors, layout.offsets, strict=True))
    return PlannedFile(layout.header, placed, layout.total_bytes)
