"""A GGUF model as the source of a conversion: its one file, or all parts of a split one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import part_of_set
from llmkit.formats.gguf import GGUFFile, Value, open_gguf
from llmkit.quantize.recipes import RECIPES
from llmkit.types import TensorInfo, TensorType

_SPLIT_KEYS: Final = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class GGUFSource:
    """A GGUF model to be quantised: all its files, the metadata of the first one, and the tensors of all."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int

    @property
    def path(self) -> Path:
        return self.files[0]


def open_source(path: Path) -> GGUFSource:
    """Open the model of which `path` is the file or, if it is split, any part; reads headers only.

    Raises what `open_gguf` raises, and FormatError if a part is missing or the parts do not belong together.
    """
    files = _part_paths(path)
    with ExitStack() as stack:
        parts = [stack.enter_context(open_gguf(file)) for file in files]
        _check_parts(parts)
        tensors: dict[str, TensorInfo] = {}
        for part in parts:
            for name, tensor in part.tensors.items():
                if name in tensors:
                    raise FormatError(part.path, f"is in {tensors[name].path} too", tensor=name)
                tensors[name] = tensor
        metadata = {key: parts[0].metadata[key] for key in parts[0].metadata if key not in _SPLIT_KEYS}
        return GGUFSource(tuple(files), metadata, tuple(tensors.values()), parts[0].alignment)


def _part_paths(path: Path) -> list[Path]:
    part = part_of_set(path.name)
    if part is None or part.count <= 1:
        return [path]
    paths = [path.with_name(part.sibling(number)) for number in range(1, part.count + 1)]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise FormatError(
            path, f"is one of {part.count} parts of a model, and {len(missing)} of them are missing beside it: {shown}"
        )
    return paths


def _check_parts(parts: Sequence[GGUFFile]) -> None:
    """The names must agree with what the files say of themselves."""
    first = parts[0]
    if first.split is None and len(parts) > 1:
        raise FormatError(first.path, f"is named as part 1 of {len(parts)}, but has no split.count; rename it")
    for number, part in enumerate(parts):
        split = part.split
        if split is not None and (split.number, split.count) != (number, len(parts)):
            expected = (
                f"part {number + 1} of {len(parts)}" if len(parts) > 1 else "named -00001-of-0000N.gguf and so on"
            )
            raise FormatError(part.path, f"says it is {part.note}; expected {expected}: give the parts their own names")
        if split is None and number:
            raise FormatError(part.path, f"has no split.count; expected part {number + 1} of {len(parts)}")
    n_tensors = sum(len(part.tensors) for part in parts)
    if first.split and first.split.n_tensors not in (None, n_tensors):
        raise FormatError(
            first.path,
            f"split.tensors.count says {first.split.n_tensors:,} tensors, the parts have {n_tensors:,}; download or "
            "split the model again",
        )


_TYPE_NAMES: Final = "|".join(sorted({*RECIPES, *(type.name.lower() for type in TensorType)}, key=len, reverse=True))


def base_name(path: Path) -> str:
    """A model's name without its type: `Model-BF16.gguf` and its parts are `Model`; `x.gguf` is `x`."""
    part = part_of_set(path.name)
    stem = part.stem if part else path.stem
    return re.sub(rf"[-._](?:{_TYPE_NAMES})$", "", stem, flags=re.IGNORECASE) or stem
