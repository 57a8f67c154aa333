"""From a MODEL argument to files on disk, and the models that are on this machine.

MODEL is, in this order:

1. a path: a checkpoint folder, a folder of a deployment format, a .gguf file, or a folder that holds exactly one;
2. `org/name[@revision]` (also as `hf://org/name` or the address of its page): the Hugging Face cache or hub;
3. a bare word such as `meta-llama`, matched against the folders here and the cached repositories.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from llmkit import hubcache
from llmkit.errors import HubError, ModelNotFoundError
from llmkit.formats.checkpointadvice import listed, place_label, why_no_checkpoint
from llmkit.formats.checkpointfiles import (
    FILE_SUFFIXES,
    MANIFEST,
    PICKLE_SUFFIXES,
    Contents,
    gguf_models,
    part_of_set,
    repo_of_cache_folder,
)
from llmkit.formats.files import user_path
from llmkit.localmodels import LocalModel, ModelKind, list_models, match, models_here, name_parts
from llmkit.protocols import Progress

__all__ = ["LocalModel", "ModelKind", "ResolvedModel", "list_models", "resolve"]

_REPO: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII
)  # the hub's own rule for names
_PAGE: Final = re.compile(r"(?:hf://|https?://(?:huggingface\.co|hf\.co)/)(?P<repo>[^/@]+/[^/@?#]+)(?P<rest>.*)")
_KIND_NAMES: Final = {
    "checkpoint": "a SafeTensors checkpoint",
    "gguf": "a GGUF file",
    "onnx": "an ONNX model",
    "exported": "a model of a deployment format",
}
_QUANTISE_FIRST: Final = "llmkit converts it: llmkit convert {} --to gguf-q4"


# What is wanted: a kind; what commands run; what a session can be made of; what becomes an ONNX model.
Wanted = ModelKind | Literal["runnable", "loadable", "convertible"]
_KINDS_OF: Final = {
    "runnable": ("gguf", "onnx", "exported"),
    "loadable": ("gguf", "onnx", "exported", "checkpoint"),
    "convertible": ("checkpoint", "gguf"),
}


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """Where a MODEL argument leads.

    `path` is a checkpoint folder, a folder for ONNX Runtime GenAI or of another deployment format, or a .gguf file.
    `name` is the model's own name, to build output names from. `repo` and `revision` (a commit hash) are set for what
    lies in the Hugging Face cache. `note` says what was chosen where the argument did not name it exactly: the caller
    prints it to stderr.
    """

    path: Path
    name: str
    kind: ModelKind
    repo: str | None = None
    revision: str | None = None
    note: str | None = None


def resolve(
    model: str, *, want: Wanted | None = None, download: bool = True, progress: Progress | None = None
) -> ResolvedModel:
    """Find the model that `model` names; `want` restricts it to one kind, or to what can be run.

    With `download` False only what is on this machine counts. Raises ModelNotFoundError when nothing fits, or
    several do, and the errors of `llmkit.hub.fetch`.
    """
    if not model.strip():
        raise ModelNotFoundError("The model's name is empty.")
    page = _PAGE.fullmatch(model)
    if page:
        revision = re.fullmatch(r"(?:@|/tree/)(?P<revision>.+?)/?", page["rest"])
        return _from_hub(page["repo"], revision["revision"] if revision else None, want, download, progress)
    path = user_path(model)
    if path.is_file():
        return _from_file(path, want)
    if path.is_dir():
        return _from_folder(path, want)
    if _looks_like_path(model):
        raise ModelNotFoundError(f"{model}: no such file or folder.{_near_paths(path)}")
    repo = _REPO.fullmatch(model)
    if repo:
        return _from_hub(repo["repo"], repo["revision"], want, download, progress)
    return _from_word(model, want, download, progress)


def _from_file(path: Path, want: Wanted | None) -> ResolvedModel:
    suffix = path.suffix.lower()
    if suffix == ".gguf" or (suffix not in (".safetensors", *PICKLE_SUFFIXES) and _is_gguf(path)):
        if not _fits("gguf", want):
            raise ModelNotFoundError(
                f"{path} is a GGUF file already; a conversion starts from a SafeTensors checkpoint: give the folder "
                "that holds config.json and the .safetensors files. To give it another type: llmkit quantize."
            )
        part = part_of_set(path.name)
        if part and part.number != 1:
            first = part.sibling(1)
            raise ModelNotFoundError(f"{path} is part {part.number} of a split model; give its first: {first}")
        return ResolvedModel(path, part.stem if part else path.stem, "gguf")
    if (path.parent / MANIFEST).is_file():
        raise ModelNotFoundError(f"{path} is a part of a model; give the folder: {path.parent}")
    if suffix in (".safetensors", *PICKLE_SUFFIXES):
        kind = "SafeTensors" if suffix == ".safetensors" else "PyTorch"
        raise ModelNotFoundError(
            f"{path} is one {kind} file; a model also needs its config.json and tokenizer. Give the folder: "
            f"{path.parent}.{_taken_out(path)}"
        )
    raise ModelNotFoundError(f"{path} is no model: expected a checkpoint folder or a .gguf file.{_taken_out(path)}")


def _taken_out(path: Path) -> str:
    """What can be done with the tensors of a file of an older format, as a sentence; else empty."""
    from llmkit.formats.older import find_older

    if find_older(path) is None:
        return ""
    return f" Its tensors can be taken out: llmkit convert {path} --to safetensors"


def _from_folder(path: Path, want: Wanted | None) -> ResolvedModel:
    found = hubcache.folder_contents(path)
    name = path.resolve().name
    if found.is_genai and _fits("onnx", want):
        return ResolvedModel(path, name, "onnx")
    if found.is_exported and _fits("exported", want):
        return ResolvedModel(path, name, "exported")
    if found.ggufs and (want == "loadable" or (_fits("gguf", want) and not _fits("checkpoint", want))):
        return _single_gguf(path, found)  # what is made to be run comes before what it was made of
    if found.is_checkpoint and _fits("checkpoint", want):
        return ResolvedModel(path, name, "checkpoint")
    if found.ggufs and _fits("gguf", want):
        return _single_gguf(path, found)
    if found.is_genai or found.is_exported:
        kind = "onnx" if found.is_genai else "exported"
        needed = "a GGUF file is needed" if want == "gguf" else "a conversion starts from a SafeTensors checkpoint"
        raise ModelNotFoundError(f"{path} is {_KIND_NAMES[kind]} already; {needed}.")
    if found.is_checkpoint:
        hint = _already_here(name) or f"{_QUANTISE_FIRST.format(path)}."
        raise ModelNotFoundError(f"{path} is a SafeTensors checkpoint; a GGUF file is needed. {hint}")
    repo = repo_of_cache_folder(path.name)
    if repo and (path / "snapshots").is_dir():
        raise ModelNotFoundError(f"{path} is a repository of the Hugging Face cache; give its name: {repo}")
    if not found.has_config and not found.has_weights:
        inside = [m for m in models_here(path) if _fits(m.kind, want)]
        if len(inside) == 1:
            note = f"Using {inside[0].label}, the only model in {path}"
            return ResolvedModel(inside[0].path, inside[0].name, inside[0].kind, note=note)
        if inside:
            listed = _bullets([m.label for m in inside])
            raise ModelNotFoundError(f"The folder {path} holds several models; give one of them:{listed}")
    if _fits("checkpoint", want) and want is not None:
        # Opening it tells what is wrong in the terms of a checkpoint: missing shards, pickled weights, no config.
        return ResolvedModel(path, name, "checkpoint")
    raise ModelNotFoundError(f"{place_label(path)} {why_no_checkpoint(found, path).reason}")


def _single_gguf(folder: Path, found: Contents) -> ResolvedModel:
    if len(found.ggufs) > 1:
        raise ModelNotFoundError(f"{folder} holds several GGUF files; give one of them:{_bullets(found.ggufs)}")
    file = _from_file(folder / found.ggufs[0], "gguf")
    return ResolvedModel(file.path, file.name, "gguf", note=f"Using {file.path}")


def _from_hub(
    repo: str, revision: str | None, want: Wanted | None, download: bool, progress: Progress | None
) -> ResolvedModel:
    snapshot = hubcache.cached_snapshot(repo, revision)
    found = hubcache.folder_contents(snapshot.path) if snapshot else None
    name = repo.rpartition("/")[2]
    if snapshot and found and found.ggufs and not found.is_checkpoint and _fits("gguf", want):
        file = _single_gguf(snapshot.path, found)
        return ResolvedModel(file.path, file.name, "gguf", repo, snapshot.commit, file.note)
    if not _fits("checkpoint", want):
        hint = _already_here(name) or (
            f"If it is a SafeTensors checkpoint, {_QUANTISE_FIRST.format(repo)}. If it holds GGUF files, download one: "
            f"hf download {repo} FILE.gguf --local-dir ."
        )
        raise ModelNotFoundError(f"{repo} names a repository of the hub, and a GGUF file is needed. {hint}")
    if not download:
        if snapshot is None or found is None or not found.is_checkpoint:
            raise ModelNotFoundError(
                f"There is no folder {repo} here, and the Hugging Face cache ({hubcache.cache_folder()}) holds no "
                f"checkpoint of that name{f' at revision {revision}' if revision else ''}."
            )
        return ResolvedModel(snapshot.path, name, "checkpoint", repo, snapshot.commit)
    from llmkit import hub

    try:
        fetched = hub.fetch(repo, revision, progress=progress)
    except (ModelNotFoundError, HubError) as error:
        # Perhaps a path with a typo was meant, but not where a revision is given.
        if revision is not None:
            raise
        folder = Path(repo).parent
        near = _near_paths(Path(repo)) if folder.is_dir() else ""
        if near or isinstance(error, ModelNotFoundError):
            raise type(error)(f"There is no file or folder {repo} here.{near} {error}") from error
        raise
    return ResolvedModel(fetched.path, name, "checkpoint", repo, fetched.commit, fetched.note)


def _from_word(word: str, want: Wanted | None, download: bool, progress: Progress | None) -> ResolvedModel:
    everything = list_models()
    matches = match(word, everything)
    fitting = [m for m in matches if _fits(m.kind, want)]
    if len(fitting) > 1:
        listed = _bullets([f"{m.label}  ({m.kind})" if want is None else m.label for m in fitting])
        raise ModelNotFoundError(f"{word!r} fits several models on this machine; give one of them:{listed}")
    if len(fitting) == 1:
        return _use(fitting[0], word, want, download, progress)
    if matches and not _fits("checkpoint", want):
        chosen = matches[0]
        hint = _already_here(chosen.name) or f"{_QUANTISE_FIRST.format(chosen.label)}."
        raise ModelNotFoundError(
            f"{word!r} fits {chosen.label}, a SafeTensors checkpoint; a GGUF file is needed. {hint}"
        )
    if matches:
        raise ModelNotFoundError(
            f"{word!r} fits {matches[0].label}, {_KIND_NAMES[matches[0].kind]} already; a conversion starts from a "
            "SafeTensors checkpoint."
        )
    raise ModelNotFoundError(
        f"Nothing on this machine is called {word!r}: no file or folder here, and no repository in the Hugging Face "
        f"cache.{_near_names(word, everything)} A model of the hub is named with its organisation, and is downloaded "
        f"when it is converted: llmkit convert ORG/{word} --to gguf-q4"
    )


def _use(
    chosen: LocalModel, word: str, want: Wanted | None, download: bool, progress: Progress | None
) -> ResolvedModel:
    place = "in the Hugging Face cache" if chosen.source == "cache" else "here"
    note = f"{word!r} is {chosen.label} {place}"
    if chosen.missing and chosen.repo and download:
        completed = _from_hub(chosen.repo, chosen.revision, want, download, progress)
        return ResolvedModel(completed.path, completed.name, "checkpoint", chosen.repo, completed.revision, note)
    return ResolvedModel(chosen.path, chosen.name, chosen.kind, chosen.repo, chosen.revision, note)


def _fits(kind: ModelKind, want: Wanted | None) -> bool:
    return want is None or kind == want or kind in _KINDS_OF.get(want, ())


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _looks_like_path(model: str) -> bool:
    return (
        model.startswith(("/", "./", "../", "~"))
        or model.endswith("/")
        or model.partition("@")[0].count("/") > 1
        or model.lower().endswith(FILE_SUFFIXES)
    )


def _already_here(name: str) -> str:
    """The GGUF files here that are the model `name` in some type, `<name>-<type>.gguf`, as a sentence; else empty."""
    from llmkit.inspection.gguf import FILE_TYPES

    of_this_model = {f"{name}-{label}".lower() for label in FILE_TYPES.values()}
    made = [str(m.path) for m in models_here() if m.kind == "gguf" and m.name.lower() in of_this_model]
    return f"Already here: {listed(made)}." if made else ""


def _near_paths(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" There is no folder {parent} either."
    near = difflib.get_close_matches(path.name, [c.name for c in parent.iterdir()], n=3, cutoff=0.6)
    if near:
        return f" Did you mean {' or '.join(str(parent / n) for n in near)}?"
    ggufs = gguf_models(c.name for c in parent.iterdir()) if path.suffix.lower() == ".gguf" else ()
    return f" GGUF files in {parent}: {', '.join(ggufs[:5])}." if ggufs else ""


def _near_names(word: str, models: Sequence[LocalModel]) -> str:
    by_word: dict[str, str] = {}
    for model in models:
        for name in (model.name, model.label, *name_parts(model.label)):
            by_word.setdefault(name.lower(), model.label)
    close = difflib.get_close_matches(word.lower(), by_word, n=5, cutoff=0.6)
    labels = list(dict.fromkeys(by_word[c] for c in close))[:3]
    return f" Did you mean {' or '.join(labels)}?" if labels else ""


def _bullets(items: Sequence[str]) -> str:
    shown = [f"\n  {item}" for item in items[:20]]
    if len(items) > 20:
        shown.append(f"\n  … and {len(items) - 20} more: llmkit models lists them")
    return "".join(shown)
