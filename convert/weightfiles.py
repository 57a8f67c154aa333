"""Which files of a checkpoint folder hold its weights, and whether they may be opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Any, Final

from llmkit.errors import FormatError, LlmkitError, ModelNotFoundError, UnsupportedError
from llmkit.formats.strictjson import json_kind, read_json_object

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_MAX_INDEX_BYTES: Final = 100_000_000
_NUMBERED: Final = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.safetensors")
_PICKLED: Final = (".bin", ".pth", ".pt", ".ckpt")


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
    if root.parent.name != "snapshots" or not root.parent.parent.name.startswith("models--"):
        return None
    return (root.parent.parent / "blobs").resolve()


def how_to_get(folder: Path, names: Sequence[str]) -> str:
    """The command that fetches missing files, as precisely as the folder's name allows."""
    root = folder.resolve()
    files = " ".join(quote(name) for name in names)
    if _hub_blobs(root) is not None:
        repo = root.parent.parent.name.removeprefix("models--").replace("--", "/")
        return f"get it with: hf download {quote(repo)} {files} --revision {quote(root.name)}"
    return f"get it from the model's page, or with: hf download ORG/NAME {files} --local-dir {quote(str(folder))}"


def read_index(folder: Path) -> dict[str, str]:
    """Tensor name -> shard file name, from `model.safetensors.index.json`; every shard inside `folder`.

    Raises FormatError when the index is malformed or names a file that is outside the folder or missing.
    """
    index = member(folder, INDEX_FILE)
    weight_map = read_json_object(index, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(index, f"weight_map must be an object that names shards, found {json_kind(weight_map)}")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise FormatError(index, f"the shard must be a file name, found {json_kind(shard)}", tensor=tensor)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if problem := _name_problem(shard):
            raise FormatError(index, f"names the shard {shard!r}, which {problem}")
        member(folder, shard)
    missing = [shard for shard in shards if not _exists(folder / shard)]
    if missing:
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        problem = f"{len(missing)} of {len(shards)} shards missing: {listed}; {how_to_get(folder, missing[:5])}"
        raise FormatError(folder, problem)
    return weight_map


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def _name_problem(shard: str) -> str | None:
    parts = PurePosixPath(shard)
    if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:|\\", shard):
        return "is outside the folder; an index may only name files of its own folder"
    if not shard.endswith(".safetensors"):
        return "is not a .safetensors file"
    if "\\" in shard or len(shard) > 255 or not shard.isprintable():
        return "is not a valid file name"
    return None


def find_unindexed(folder: Path, names: Sequence[str]) -> list[str]:
    """The weight files of a folder without `model.safetensors` and without an index, in order.

    One file of any name is taken, or one complete set of numbered shards. Raises FormatError for an incomplete
    set, UnsupportedError when no file, or no single choice among them, is readable.
    """
    # Mistral repositories hold the same weights a second time, under their authors' own tensor names.
    found = [
        name for name in names if name.endswith(".safetensors") and not name.startswith(("consolidated", "adapter"))
    ]
    if not found:
        raise no_weights(folder, names)
    if len(found) == 1 and not _NUMBERED.fullmatch(found[0]):
        return found
    matches = [match for name in found if (match := _NUMBERED.fullmatch(name))]
    sets = {(match["stem"], match["count"]) for match in matches}
    if len(matches) < len(found) or len(sets) > 1:
        listed = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise UnsupportedError(
            f"{folder}: several SafeTensors files ({listed}) and neither {SINGLE_FILE} nor {INDEX_FILE} to say which "
            "belong to the model; leave only those, or add the index"
        )
    ((stem, count),) = sets
    if int(count) > 2 * len(found) + 1000:
        raise FormatError(folder, f"{found[0]} claims to be one of {int(count):,} shards; {len(found)} are here")
    expected = [f"{stem}-{part:05d}-of-{count}.safetensors" for part in range(1, int(count) + 1)]
    missing = [name for name in expected if name not in found]
    if missing or len(found) != len(expected):
        wrong = ", ".join((missing or found)[:5])
        raise FormatError(
            folder, f"{len(found)} of {len(expected)} shards are here; check {wrong}; {how_to_get(folder, missing[:5])}"
        )
    return expected


def no_weights(folder: Path, names: Sequence[str]) -> LlmkitError:
    """The error for a folder without SafeTensors weights: what is there instead, and what to do."""
    if pickled := [name for name in names if name.endswith(_PICKLED) and "training_args" not in name]:
        here, there = str(folder), f"{folder}-safetensors"
        code = (
            "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
            f"M.from_pretrained({here!r}, dtype='auto').save_pretrained({there!r}); "
            f"T.from_pretrained({here!r}).save_pretrained({there!r})"
        )
        return UnsupportedError(
            f"{folder}: the weights are PyTorch files ({pickled[0]}{', ...' if len(pickled) > 1 else ''}), not "
            "SafeTensors. Opening such a file can execute code, so llmkit does not read them. If you trust their "
            f"source, convert them once with transformers:\n  python -c {quote(code)}"
        )
    if "adapter_config.json" in names:
        return UnsupportedError(
            f"{folder}: this is a LoRA adapter, not a whole model; merge it into its base model first "
            "(peft: merge_and_unload, then save_pretrained)"
        )
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return UnsupportedError(
            f"{folder}: holds GGUF files, not a checkpoint; name the file itself: {folder / gguf[0]}"
        )
    if any(name.startswith("consolidated") for name in names):
        return UnsupportedError(
            f"{folder}: only consolidated weights are here, in their authors' own layout; get the model's version "
            f"in Hugging Face format ({SINGLE_FILE} or {INDEX_FILE})"
        )
    return FormatError(folder, f"no weights: neither {SINGLE_FILE} nor {INDEX_FILE} nor another .safetensors file")


def no_config(folder: Path, names: Sequence[str]) -> LlmkitError:
    """The error for a folder without config.json."""
    if "snapshots" in names and "blobs" in names:
        return FormatError(folder, "this is a Hugging Face cache folder; name the model, or a folder in its snapshots/")
    weights: Any = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter")]
    if weights and "params.json" not in names:
        return FormatError(folder, f"config.json is missing; {how_to_get(folder, ['config.json'])}")
    if "params.json" in names:
        return UnsupportedError(
            f"{folder}: config.json is missing and params.json is there: the model is in its authors' own layout; "
            "get its version in Hugging Face format"
        )
    if "adapter_config.json" in names or any(name.endswith((".gguf", *_PICKLED)) for name in names):
        return no_weights(folder, names)
    return FormatError(folder, "not a model checkpoint: no config.json and no .safetensors file")
