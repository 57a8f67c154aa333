"""The models on this machine: in the current folder, in its direct subfolders, and in the Hugging Face cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmkit import hubcache
from llmkit.formats.checkpointfiles import part_of_set

ModelKind = Literal["checkpoint", "gguf", "onnx", "exported"]


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One model on this machine. `missing` names weight files that an unfinished download lacks."""

    name: str
    kind: ModelKind
    path: Path
    n_bytes: int
    source: Literal["here", "cache"]
    repo: str | None = None
    revision: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What to type: the repository or the path."""
        return self.repo if self.repo and self.kind == "checkpoint" else str(self.path)


def list_models(folder: Path | None = None) -> list[LocalModel]:
    """The models in `folder` (default: the current one), in its direct subfolders, and in the Hugging Face cache."""
    return [*models_here(folder), *models_in_cache()]


def models_here(folder: Path | None = None) -> list[LocalModel]:
    """The models in `folder` (default: the current one) and in its direct subfolders."""
    here = folder or Path()
    found = _models_in(here, name=here.resolve().name)
    try:
        children = sorted(c for c in here.iterdir() if c.is_dir() and not c.name.startswith("."))
    except OSError:
        children = []
    for child in children:
        found += _models_in(child, name=child.name)
    return found


def models_in_cache() -> list[LocalModel]:
    """The models in the Hugging Face cache, one revision of each repository."""
    return [
        LocalModel(m.name, m.kind, m.path, m.n_bytes, "cache", snapshot.repo, snapshot.commit, m.missing)
        for snapshot in hubcache.cached_snapshots()
        for m in _models_in(snapshot.path, name=snapshot.repo.rpartition("/")[2])
    ]


def match(word: str, models: Sequence[LocalModel]) -> list[LocalModel]:
    """The models that `word` fits best, ignoring case: by the whole name, else by whole parts, else by any part.

    `meta-llama` fits `meta-llama/Llama-3.2-1B`; `llama` fits it better (a whole part) than `TinyLlama-1.1B`.
    """
    sought = word.lower()
    parts = name_parts(sought)
    tiers: list[list[LocalModel]] = [[], [], []]
    for model in models:
        names = {model.name.lower(), model.path.name.lower() if model.kind == "gguf" else model.name.lower()}
        if model.repo:
            names.add(model.repo.lower())
        if sought in names:
            tiers[0].append(model)
        elif any(_is_run(parts, name_parts(name)) for name in names):
            tiers[1].append(model)
        elif any(sought in name for name in names):
            tiers[2].append(model)
    return next((tier for tier in tiers if tier), [])


def name_parts(name: str) -> list[str]:
    """The words and numbers of a name in lower case: "meta-llama/Llama-3.2" -> meta, llama, llama, 3, 2."""
    return [part for part in re.split(r"[^a-z0-9]+", name.lower()) if part]


def _is_run(parts: list[str], of: list[str]) -> bool:
    return bool(parts) and any(of[i : i + len(parts)] == parts for i in range(len(of) - len(parts) + 1))


def _models_in(folder: Path, name: str) -> list[LocalModel]:
    """The checkpoint, ONNX or exported model in `folder`, if it is one, and every .gguf file in it."""
    found = hubcache.folder_contents(folder)
    models = []
    if found.is_genai:
        n_bytes = sum(_size(folder / n) for n in found.names if ".onnx" in n)
        models.append(LocalModel(name, "onnx", folder, n_bytes, "here"))
    elif found.is_exported:
        n_bytes = sum(_size(path) for path in folder.rglob("*") if path.is_file())
        models.append(LocalModel(name, "exported", folder, n_bytes, "here"))
    if found.is_checkpoint:
        missing = tuple(hubcache.missing_weights(folder, found))
        n_bytes = sum(_size(folder / n) for n in found.weights)
        models.append(LocalModel(name, "checkpoint", folder, n_bytes, "here", missing=missing))
    for file in found.ggufs:
        part = part_of_set(file)
        siblings = (part.sibling(n) for n in range(1, part.count + 1)) if part else (file,)
        files = [n for n in siblings if n in found.names]
        n_bytes = sum(_size(folder / n) for n in files)
        stem = part.stem if part else Path(file).stem
        models.append(LocalModel(stem, "gguf", folder / file, n_bytes, "here"))
    return models


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
