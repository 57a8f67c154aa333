"""The Hugging Face cache on disk, read without the network.

Layout, as the huggingface_hub documentation fixes it ("Understand caching"):

    models--<org>--<name>/refs/<revision>        a commit hash
    models--<org>--<name>/snapshots/<commit>/    the files, links into blobs/

and the same under datasets--<org>--<name>.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import CONFIG, Contents, contents, repo_of_cache_folder
from llmkit.formats.shardindex import read_weight_map

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
Kind = Literal["model", "dataset"]  # of a repository


@dataclass(frozen=True, slots=True)
class CachedSnapshot:
    """One revision of a repository in the cache."""

    repo: str
    commit: str
    path: Path


def hub_constants() -> ModuleType:
    """huggingface_hub's constants: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE as that library reads them."""
    # Read at import: without it the library puts details of the environment into its User-Agent and asks the
    # hub for a list of programs that may have called it.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    return constants


def cache_folder() -> Path:
    """Where the cache is, whether or not it exists."""
    return Path(hub_constants().HF_HUB_CACHE).expanduser()


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids the network."""
    return bool(hub_constants().HF_HUB_OFFLINE)


def repo_folder(repo: str, kind: Kind = "model") -> Path:
    """The cache folder of the repository `org/name`."""
    return cache_folder() / "--".join((f"{kind}s", *repo.split("/")))


def cached_commit(repo: str, revision: str | None, kind: Kind = "model") -> str | None:
    """The commit that `revision` had when it was last fetched; None if it never was.

    Without a revision: that of `main`, else of the snapshot that was made last.
    """
    folder = repo_folder(repo, kind)
    if revision is not None and COMMIT.fullmatch(revision):
        return revision if (folder / "snapshots" / revision).is_dir() else None
    reference = folder / "refs" / (revision or "main")
    if ".." not in reference.parts and reference.is_file():
        commit = reference.read_text(encoding="ascii", errors="replace").strip()
        if COMMIT.fullmatch(commit) and (folder / "snapshots" / commit).is_dir():
            return commit
    if revision is not None:
        return None
    snapshots = [s for s in _subfolders(folder / "snapshots") if COMMIT.fullmatch(s.name)]
    return max(snapshots, key=lambda s: s.stat().st_mtime).name if snapshots else None


def cached_snapshot(repo: str, revision: str | None = None) -> CachedSnapshot | None:
    """The snapshot of `repo` at `revision`, complete or not; None if there is none."""
    commit = cached_commit(repo, revision)
    if commit is None:
        return None
    return CachedSnapshot(repo, commit, repo_folder(repo) / "snapshots" / commit)


def cached_snapshots() -> Iterator[CachedSnapshot]:
    """One snapshot per cached model repository, by name."""
    for folder in sorted(_subfolders(cache_folder()), key=lambda f: f.name.lower()):
        repo = repo_of_cache_folder(folder.name)
        snapshot = cached_snapshot(repo) if repo else None
        if snapshot is not None:
            yield snapshot


def folder_contents(folder: Path) -> Contents:
    """Classify what lies in `folder`; links that lead nowhere count as absent."""
    names = []
    try:
        for entry in folder.iterdir():
            if entry.is_file():
                names.append(entry.name)
            elif entry.is_dir() and entry.name == "additional_chat_templates":
                names += [f"{entry.name}/{child.name}" for child in entry.iterdir() if child.is_file()]
    except OSError:
        return contents(())
    return contents(names)


def missing_weights(folder: Path, found: Contents) -> list[str]:
    """The weight files that a checkpoint folder's index names but the folder lacks; [] when it is complete."""
    if not found.has_config:
        return [CONFIG]
    if found.index is None:
        return [] if found.weights else ["*.safetensors"]
    return sorted(n for n in shards_in_index(folder / found.index) if not _is_file(folder / n))


def shards_in_index(path: Path) -> set[str]:
    """The files that a `model.safetensors.index.json` names; empty when it would be refused on opening."""
    try:
        return set(read_weight_map(path).values())
    except FormatError:
        return set()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows
        return False


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [child for child in folder.iterdir() if child.is_dir()]
    except OSError:
        return []
