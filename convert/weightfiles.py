"""Which files of a checkpoint folder hold its weights, and whether they may be opened."""

from __future__ import annotations

from pathlib import Path

from llmkit.errors import FormatError, LlmkitError, ModelNotFoundError, UnsupportedError
from llmkit.formats.checkpointadvice import how_to_get, listed, place_label, why_no_checkpoint
from llmkit.formats.checkpointfiles import Contents, cached_repo
from llmkit.formats.shardindex import read_weight_map


def list_names(folder: Path) -> list[str]:
    """The sorted names in `folder`; ModelNotFoundError when it cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        raise ModelNotFoundError(f"{folder}: no such folder") from None
    except NotADirectoryError:
        raise ModelNotFoundError(f"{folder}: expected a checkpoint folder, found a file") from None
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{folder}: cannot be listed: {error}") from error


def member(folder: Path, name: str) -> Path:
    """The path of file `name` of a checkpoint, whether it exists or not, if it lies inside `folder`.

    A symbolic link may not lead out of the folder, with one exception: in the Hugging Face cache
    (`<repo>/snapshots/<revision>/<name>`) files are links into `<repo>/blobs`. The name itself must be relative
    and without `..` there too, so that an index cannot reach other files through it.
    Raises FormatError.
    """
    path = folder / name
    try:
        real, root = path.resolve(), folder.resolve()
        allowed = real.is_relative_to(root) or real.parent == _hub_blobs(root)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL
        raise FormatError(path, f"cannot be resolved: {error}") from error
    if not allowed:
        problem = f"is a link to {real}, outside its folder; copy the file here if it belongs to this checkpoint"
        raise FormatError(path, problem)
    return path


def _hub_blobs(root: Path) -> Path | None:
    """The folder that the links of a Hugging Face cache snapshot lead to; None if `root` is no snapshot."""
    return None if cached_repo(root) is None else (root.parent.parent / "blobs").resolve()


def read_index(folder: Path, name: str) -> dict[str, str]:
    """Tensor name -> shard file name, from the index `name`; every shard inside `folder`.

    Raises FormatError when the index is malformed or names a file that is outside the folder or missing.
    """
    weight_map = read_weight_map(member(folder, name))
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        member(folder, shard)
    missing = [shard for shard in shards if not _exists(folder / shard)]
    if missing:
        problem = f"{len(missing)} of {len(shards)} shards missing: {listed(missing, 5)}"
        raise FormatError(folder, f"{problem}; {how_to_get(folder, missing[:5])}")
    return weight_map


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def no_checkpoint(folder: Path, found: Contents) -> LlmkitError:
    """The error for a folder whose names make no checkpoint: what is there instead, and what to do."""
    if {"snapshots", "blobs"} <= found.names:
        return FormatError(folder, "this is a Hugging Face cache folder; name the model, or a folder in its snapshots/")
    problem = why_no_checkpoint(found, folder)
    if problem.is_other_kind:
        return UnsupportedError(f"{place_label(folder)} {problem.reason}")
    return FormatError(folder, problem.reason)
