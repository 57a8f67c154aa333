"""Models as users name them, opened for measuring: paths, words, what `resolve` returned, or open sessions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llmkit.errors import EvaluationError
from llmkit.protocols import Session

if TYPE_CHECKING:
    from llmkit.models import ResolvedModel

# A model as users name it: a path or word, what `llmkit.models.resolve` returned, or an open session.
Model: TypeAlias = "str | os.PathLike[str] | ResolvedModel | Session"


def as_list(models: Model | Sequence[Model]) -> list[Model]:
    """One model or several, as a list."""
    if isinstance(models, Sequence) and not isinstance(models, str):
        return list(models)
    return [models]


def labelled(models: Sequence[Model]) -> dict[str, Model]:
    """The models by name."""
    return dict(zip(labels_of(models), models, strict=True))


def labels_of(models: Sequence[Model]) -> list[str]:
    """The names of models: those of files or folders, with the folders above where two are called the same.

    Raises EvaluationError for one that is given twice.
    """
    paths = [_path_of(model) for model in models]
    twice = sorted({path.name for path in paths if paths.count(path) > 1})
    if twice:
        raise EvaluationError(f"given twice: {', '.join(twice)}")
    depth = 1
    while len(set(labels := ["/".join(path.parts[-depth:]) for path in paths])) < len(paths):
        depth += 1
    return labels


def _path_of(model: Model) -> Path:
    from llmkit.models import ResolvedModel

    if isinstance(model, ResolvedModel):
        return model.path if model.repo is None or model.kind == "gguf" else Path(model.repo)  # not the commit's folder
    return Path(os.fspath(model)) if isinstance(model, str | os.PathLike) else Path(model.info.name)


def located(model: str | os.PathLike[str] | ResolvedModel) -> ResolvedModel:
    """Where a model lies on this machine. Raises ModelNotFoundError.

    A folder with a checkpoint means the checkpoint, although there is a GGUF file beside it: that has a name of its
    own, and may be what is to be compared.
    """
    from llmkit import hubcache
    from llmkit.formats.files import user_path
    from llmkit.models import ResolvedModel, resolve

    if isinstance(model, ResolvedModel):
        return model
    found = resolve(os.fspath(model), want="loadable", download=False)
    folder = user_path(os.fspath(model))
    if found.kind == "gguf" and folder.is_dir() and hubcache.folder_contents(folder).is_checkpoint:
        return ResolvedModel(folder, folder.resolve().name, "checkpoint")
    return found


@contextmanager
def opened(model: Model, context: int | None, threads: int | None, *, n_branches: int = 0) -> Iterator[Session]:
    """The session; one that was given stays open.

    n_branches: how many continuations of a prompt are to pass the model together, of engines that can.
    """
    from llmkit import runtimes
    from llmkit.models import ResolvedModel

    if not isinstance(model, str | os.PathLike | ResolvedModel):
        yield model
        return
    resolved = located(model)
    extra = {"n_branches": n_branches} if n_branches and resolved.kind == "gguf" else {}
    with runtimes.load(resolved.path, n_context=context, n_threads=threads, **extra) as session:
        yield session
