"""Why files are no checkpoint that llmkit reads, and what to do about it: one text for folders and repositories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from llmkit.formats.checkpointfiles import (
    CONFIG,
    INDEX,
    PYTORCH_INDEX,
    PYTORCH_SINGLE,
    SINGLE,
    Contents,
    cached_repo,
    numbered_set,
)

# Where the files are: a folder, or a repository of the hub, `org/name` or `org/name@revision`.
Place = Path | str


@dataclass(frozen=True, slots=True)
class NoCheckpoint:
    """Why there is no checkpoint. `reason` goes on from the name of the place: "holds ...", "has ...".

    `is_other_kind`: there are weights, whole as far as the names tell, of a kind that llmkit does not convert. If
    not, something is missing.
    """

    reason: str
    is_other_kind: bool


def place_label(place: Place) -> str:
    """The place at the beginning of a sentence."""
    return f"The folder {place}" if isinstance(place, Path) else f"The hub repository {place}"


def why_no_checkpoint(found: Contents, place: Place) -> NoCheckpoint:
    """What `place` holds instead of a SafeTensors checkpoint, and what to do. For contents that are no checkpoint."""
    if found.is_adapter and not found.safetensors:
        return NoCheckpoint(
            "holds a LoRA adapter (adapter_config.json), not a whole model. Merge it into its base model first "
            "(peft: merge_and_unload, then save_pretrained) and give the folder that this makes.",
            is_other_kind=True,
        )
    if found.is_consolidated:
        return NoCheckpoint(
            "holds its weights only in Meta's or Mistral's own layout (consolidated* with params.json). llmkit reads "
            f"the Hugging Face format, {SINGLE} or {INDEX} with {CONFIG}: get the model's version in that format.",
            is_other_kind=True,
        )
    if found.safetensors and not found.weights:
        return _unclear_shards(found.safetensors, place)
    if (found.weights or found.index) and not found.has_config:
        kind = "SafeTensors" if found.safetensors or found.index == INDEX else "PyTorch"
        if isinstance(place, Path):
            problem = f"has {kind} weights, but {CONFIG} is missing, which describes them"
            return NoCheckpoint(f"{problem}; {how_to_get(place, [CONFIG])}", is_other_kind=False)
        return NoCheckpoint(f"has {kind} weights but no {CONFIG}, which describes them.", is_other_kind=False)
    if found.pickles:
        return _pickles(found, place)
    if found.ggufs:
        return NoCheckpoint(_only_ggufs(found.ggufs, place), is_other_kind=True)
    if found.other_weights:
        return NoCheckpoint(
            f"holds {listed(found.other_weights)}; llmkit reads SafeTensors checkpoints and GGUF files.",
            is_other_kind=True,
        )
    if found.has_config:
        return NoCheckpoint(
            f"has a {CONFIG} but no weights: neither {SINGLE} nor {INDEX} nor another .safetensors file, "
            "nor PyTorch's.",
            is_other_kind=False,
        )
    return NoCheckpoint(
        "holds no model: no .gguf and no .safetensors file, so it is not a model checkpoint.", is_other_kind=False
    )


def _pickles(found: Contents, place: Place) -> NoCheckpoint:
    """Files of PyTorch's that are not one checkpoint."""
    advice = "; leave only those, or add the index" if isinstance(place, Path) else ""
    return NoCheckpoint(
        f"has {len(found.pickles)} PyTorch files ({listed(found.pickles)}) but neither {PYTORCH_SINGLE} nor an index, "
        f"no {PYTORCH_INDEX}, which says what belongs to the model{advice}.",
        is_other_kind=True,
    )


def how_to_get(folder: Path, names: Sequence[str]) -> str:
    """The command that fetches missing files, as precisely as the folder's name allows."""
    root = folder.resolve()
    files = " ".join(quote(name) for name in names)
    repo = cached_repo(root)
    if repo is not None:
        return f"get it with: hf download {quote(repo)} {files} --revision {quote(root.name)}"
    return f"get it from the model's page, or with: hf download ORG/NAME {files} --local-dir {quote(str(folder))}"


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and dots for the others."""
    return ", ".join([*names[:limit], *(["..."] if len(names) > limit else [])])


def _only_ggufs(ggufs: Sequence[str], place: Place) -> str:
    holds = f"holds GGUF files ({listed(ggufs)}), no SafeTensors checkpoint"
    if isinstance(place, Path):
        return f"{holds}; name the file itself: {place / ggufs[0]}"
    repo, _, revision = place.partition("@")
    command = f"hf download {repo} {quote(ggufs[0])}{f' --revision {quote(revision)}' if revision else ''}"
    return (
        f"{holds}. A GGUF file needs no conversion: download the one you want with `{command} --local-dir .` and give "
        "that file."
    )


def _unclear_shards(safetensors: Sequence[str], place: Place) -> NoCheckpoint:
    """Files that are neither one nor a complete numbered set, without an index."""
    parts = numbered_set(safetensors)
    if parts is None:
        advice = "; leave only those, or add the index" if isinstance(place, Path) else ""
        return NoCheckpoint(
            f"has {len(safetensors)} .safetensors files ({listed(safetensors, 8)}) but neither {SINGLE} nor an index, "
            f"no {INDEX}, which says what belongs to the model{advice}.",
            is_other_kind=True,
        )
    numbers = {part.number for part in parts}
    missing = [parts[0].sibling(n) for n in range(1, parts[0].count + 1) if n not in numbers]
    problem = f"has {len(parts):,} of {parts[0].count:,} shards and no {INDEX}"
    if not missing:  # numbered 00000, or beyond their count
        return NoCheckpoint(f"{problem}; check {listed(safetensors, 5)}", is_other_kind=False)
    how = f"; {how_to_get(place, missing[:5])}" if isinstance(place, Path) else "."
    return NoCheckpoint(f"{problem}; missing: {listed(missing, 5)}{how}", is_other_kind=False)
