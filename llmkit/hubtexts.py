"""Texts from datasets of the Hugging Face hub: their Parquet files, fetched into its cache, read row by row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from llmkit import __version__, hubcache
from llmkit.errors import HubError, ModelNotFoundError
from llmkit.formats.parquet import read_column
from llmkit.hub import bar_class, quiet_library, translated
from llmkit.progress import Silent
from llmkit.protocols import Progress

# Names that people use.
_KNOWN: Final = {
    "wikitext": "Salesforce/wikitext/wikitext-2-raw-v1/test",
    "wikitext-2": "Salesforce/wikitext/wikitext-2-raw-v1/test",
    "wikitext-103": "Salesforce/wikitext/wikitext-103-raw-v1/test",
}
# The hub keeps a converted copy of what has no Parquet files of its own.
_REVISIONS: Final = ("main", "refs/convert/parquet")
_FILE: Final = re.compile(
    r"(?:(?P<config>[A-Za-z0-9][^/]*)/)?(?:partial-)?(?P<split>[A-Za-z]\w*?)"
    r"(?:-\d+-of-(?P<count>\d+)(?:-[0-9a-f]+)?|/\d+)?\.parquet",
    re.ASCII,
)
_DATA: Final = "data"  # the folder of a dataset with one configuration
_SPLITS: Final = ("test", "validation", "train")  # in this order, where none is named
_ENOUGH: Final = 32 << 20  # characters: some eight million tokens

Files = Mapping[str, Mapping[str, Sequence[str]]]  # by configuration and split


@dataclass(frozen=True, slots=True)
class DatasetText:
    """A split's text and its full name."""

    name: str
    text: str


def fetch_text(name: str, *, progress: Progress | None = None) -> DatasetText:
    """The text of a dataset, its first 32 million characters.

    name: `org/name[/configuration[/split]]`, or wikitext, wikitext-2, wikitext-103. The only configuration and the
        split test, validation or train, in this order, are taken where none is named.

    Rows that end in newlines are a text's lines, others are texts of their own, with an empty line between them.

    Raises ModelNotFoundError for a dataset, configuration or split that is not there, HubError, FormatError for what
    holds no texts, DependencyError without pyarrow (extra `datasets`).
    """
    repo, config, split = _parse(name)
    source = _source(repo)
    try:
        config, split = _choose(repo, source.files, config, split)
    except ModelNotFoundError as error:
        if source.folder is None:
            raise
        raise HubError(f"{error} in the cache ({hubcache.cache_folder()}), and the hub is out of reach.") from None
    texts: list[str] = []
    n_chars = 0
    progress = progress or Silent()
    for file in source.files[config][split]:
        for text in read_column(source.fetch(file, progress)):
            texts.append(text)
            n_chars += len(text)
            if n_chars >= _ENOUGH:
                break
        if n_chars >= _ENOUGH:
            break
    full = "/".join((repo, *(part for part in (config, split) if part != _DATA)))
    return DatasetText(full, _joined(texts)[:_ENOUGH])


def _parse(name: str) -> tuple[str, str | None, str | None]:
    parts = _KNOWN.get(name, name).split("/")
    if not 2 <= len(parts) <= 4 or not all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", part, re.ASCII) for part in parts):
        raise ModelNotFoundError(
            f"{name!r} is no dataset's name: expected org/name[/configuration[/split]], or one of {', '.join(_KNOWN)}"
        )
    config, split = [*parts[2:], None, None][:2]
    return "/".join(parts[:2]), config, split


@dataclass(frozen=True, slots=True)
class _Source:
    """A revision of a dataset: on the hub, or in the cache where `folder` says where."""

    repo: str
    commit: str
    files: Files
    folder: Path | None = None
    sizes: Mapping[str, int | None] = field(default_factory=dict)
    revision: str = _REVISIONS[0]

    def fetch(self, file: str, progress: Progress) -> Path:
        if self.folder is not None:
            return self.folder / file
        from huggingface_hub import hf_hub_download

        is_new = not (hubcache.repo_folder(self.repo, "dataset") / "snapshots" / self.commit / file).exists()
        if is_new:
            progress.start(f"Downloading {self.repo}", self.sizes.get(file) or 0)
        with translated(self.repo, None, "dataset"), quiet_library():
            path = hf_hub_download(
                self.repo,
                file,
                repo_type="dataset",
                revision=self.revision,  # by its name, so that the cache learns which commit it is
                library_name="llmkit",
                library_version=__version__,
                tqdm_class=bar_class(progress if is_new else Silent(), file),
            )
        if is_new:
            progress.finish()
        return Path(path)


def _source(repo: str) -> _Source:
    """Where the dataset's files are. Without the network those in the cache serve."""
    cached = _cached(repo)
    if hubcache.is_offline():
        if cached is None:
            raise HubError(f"{repo} is not in the cache ({hubcache.cache_folder()}), and HF_HUB_OFFLINE is set.")
        return cached
    try:
        for revision in _REVISIONS:
            found = _listed(repo, revision)
            if found is not None and found.files:
                return found
    except HubError:
        if cached is None:
            raise
        return cached
    raise ModelNotFoundError(f"The dataset {repo} has no Parquet files, which llmkit reads.")


def _listed(repo: str, revision: str) -> _Source | None:
    """What the hub lists; None if there is no such revision besides main."""
    from llmkit.hub import RevisionNotFoundError

    constants = hubcache.hub_constants()
    try:
        with translated(repo, revision, "dataset"):
            from huggingface_hub import HfApi

            api = HfApi(library_name="llmkit", library_version=__version__)
            info = api.dataset_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RevisionNotFoundError:
        return None
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or ()}
    return _Source(repo, info.sha or "", _by_split(sizes), sizes=sizes, revision=revision)


def _cached(repo: str) -> _Source | None:
    for revision in _REVISIONS:
        commit = hubcache.cached_commit(repo, revision, kind="dataset")
        if commit is None:
            continue
        folder = hubcache.repo_folder(repo, "dataset") / "snapshots" / commit
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet"))
        files = _complete(_by_split(names))
        if files:
            return _Source(repo, commit, files, folder)
    return None


def _by_split(names: Iterable[str]) -> Files:
    """The Parquet files by configuration and split, by the hub's ways of naming them."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        parts = _FILE.fullmatch(name)
        if parts:
            found.setdefault(parts["config"] or _DATA, {}).setdefault(parts["split"], []).append(name)
    return found


def _complete(files: Files) -> Files:
    """Without the splits of which the cache lacks files: their text would be another one."""
    found: dict[str, dict[str, Sequence[str]]] = {}
    for config, splits in files.items():
        for split, names in splits.items():
            parts = _FILE.fullmatch(names[0])
            if parts is not None and int(parts["count"] or len(names)) == len(names):
                found.setdefault(config, {})[split] = names
    return found


def _choose(repo: str, files: Files, config: str | None, split: str | None) -> tuple[str, str]:
    if config is None:
        if len(files) > 1:
            raise ModelNotFoundError(f"The dataset {repo} has several configurations; name one: {_few(repo, files)}")
        config = next(iter(files))
    if config not in files:
        raise ModelNotFoundError(f"The dataset {repo} has no configuration {config!r}, but {_few(repo, files)}")
    splits = files[config]
    if split is None:
        split = next((one for one in _SPLITS if one in splits), next(iter(splits)))
    if split not in splits:
        raise ModelNotFoundError(f"{repo}/{config} has no split {split!r}, but {', '.join(splits)}")
    return config, split


def _few(repo: str, files: Files) -> str:
    names = [f"{repo}/{config}" for config in list(files)[:10]]
    return ", ".join(names) + (" and more" if len(files) > len(names) else "")


def _joined(texts: Sequence[str]) -> str:
    filled = [text for text in texts if text]
    if filled and all(text.endswith("\n") for text in filled):
        # WikiText's lines begin and end with a blank, and its empty ones, which the dataset lacks, are one blank.
        empty = " \n" if all(text.startswith(" ") for text in filled) else "\n"
        return "".join(text or empty for text in texts)
    return "\n\n".join(filled)
