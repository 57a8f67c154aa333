"""Fetching a checkpoint from the Hugging Face hub into its cache, only the files that llmkit reads.

The work is done by the huggingface_hub package (cache layout, resuming, tokens, proxies, Xet); here is what to
fetch, the progress, and one clear message for each way to fail.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from llmkit import __version__, hubcache
from llmkit.errors import HubError, LlmkitError, ModelNotFoundError, OutputError
from llmkit.formats.checkpointadvice import place_label, why_no_checkpoint
from llmkit.formats.checkpointfiles import CONFIG, Contents, contents
from llmkit.progress import Silent, format_bytes
from llmkit.protocols import Progress

_TRY_AGAIN: Final = " Check the connection and run the command again; it goes on with the file it stopped at."


@dataclass(frozen=True, slots=True)
class Listing:
    """What the hub says of a repository at a revision: the commit and the sizes of its files."""

    repo: str
    revision: str | None
    commit: str
    sizes: dict[str, int | None]

    @property
    def contents(self) -> Contents:
        return contents(self.sizes)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A checkpoint folder in the cache. `note` tells of a fallback, such as the hub being out of reach."""

    path: Path
    commit: str
    note: str | None = None


def fetch(repo: str, revision: str | None = None, *, progress: Progress | None = None) -> Fetched:
    """The checkpoint `repo` (org/name) at `revision` (a branch, tag or commit; default main), downloaded if need be.

    The hub is asked for the revision's current commit; files that are in the cache are not fetched again. Without
    the network (HF_HUB_OFFLINE=1, or the hub out of reach) a complete cached copy serves.

    Raises ModelNotFoundError (no such repository or revision, or no SafeTensors checkpoint in it), HubError (no
    access, no connection, a failing server) and OutputError (the cache cannot be written, disk full).
    """
    cached = _complete_snapshot(repo, revision)
    if cached is not None and revision is not None and hubcache.COMMIT.fullmatch(revision):
        return Fetched(cached.path, cached.commit)
    if hubcache.is_offline():
        if cached is None:
            raise HubError(_offline_message(repo, revision))
        return Fetched(cached.path, cached.commit)
    try:
        listing = list_files(repo, revision)
    except (HubError, ModelNotFoundError) as error:
        if cached is None or isinstance(error, RevisionNotFoundError):
            raise
        problem = str(error).removesuffix(_TRY_AGAIN)
        return Fetched(cached.path, cached.commit, f"{problem} Using the cached copy, commit {cached.commit[:12]}.")
    return _download(listing, progress or Silent())


class RevisionNotFoundError(ModelNotFoundError):
    """The repository exists, the revision does not."""


def list_files(repo: str, revision: str | None = None) -> Listing:
    """Ask the hub for the commit and files of a repository: one request. Raises as `fetch` does."""
    constants = hubcache.hub_constants()
    with translated(repo, revision):
        from huggingface_hub import HfApi

        api = HfApi(library_name="llmkit", library_version=__version__)
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if info.sha is None or not hubcache.COMMIT.fullmatch(info.sha):
        raise HubError(f"The hub at {constants.ENDPOINT} names no commit for {_label(repo, revision)}.")
    sizes = {s.rfilename: s.size for s in info.siblings or () if _is_safe(s.rfilename)}
    return Listing(repo, revision, info.sha, sizes)


def _download(listing: Listing, progress: Progress) -> Fetched:
    found = listing.contents
    if not found.is_checkpoint:
        repo = _label(listing.repo, listing.revision)
        raise ModelNotFoundError(f"{place_label(repo)} {why_no_checkpoint(found, repo).reason}")
    folder = hubcache.repo_folder(listing.repo) / "snapshots" / listing.commit
    # The weights last: a snapshot whose weights are complete is complete.
    small = [CONFIG, *found.companions, *((found.index,) if found.index else ())]
    _fetch_files(listing, small, folder, progress)
    weights = list(found.weights)
    if found.index:
        shards = hubcache.shards_in_index(folder / found.index)
        absent = sorted(shards - set(listing.sizes))
        if not shards or absent:
            problem = f"names {', '.join(absent[:3])}, not in the repository" if absent else "names no files"
            raise ModelNotFoundError(f"{_label(listing.repo, listing.revision)}: {found.index} {problem}.")
        weights = sorted(shards)
    _fetch_files(listing, weights, folder, progress)
    return Fetched(folder, listing.commit)


def _fetch_files(listing: Listing, names: Sequence[str], folder: Path, progress: Progress) -> None:
    """Fetch what is not in the cache yet, one file after the other: an interrupt stops at once."""
    wanted = [n for n in names if not (folder / n).exists()]
    is_recorded = hubcache.cached_commit(listing.repo, listing.revision or "main") == listing.commit
    if CONFIG in names and CONFIG not in wanted and not is_recorded:
        wanted.insert(0, CONFIG)  # costs one request and records which commit the revision is now
    total = sum(listing.sizes[n] or 0 for n in wanted if not (folder / n).exists())
    _check_space(total, listing)
    # Progress is worth showing for the weights only.
    shown = progress if total > 50_000_000 or any(n.endswith((".safetensors", ".bin")) for n in wanted) else Silent()
    if wanted:
        shown.start(f"Downloading {listing.repo}", total)
    from huggingface_hub import hf_hub_download

    with translated(listing.repo, listing.revision), quiet_library():
        for name in wanted:
            present = (folder / name).exists()
            bar = bar_class(shown, name)
            path = hf_hub_download(
                listing.repo,
                name,
                # config.json by the revision's name, so that the cache learns refs/<revision>; all others by commit.
                revision=listing.revision if name == CONFIG else listing.commit,
                library_name="llmkit",
                library_version=__version__,
                tqdm_class=bar,  # stands in for the few methods that are called
            )
            if name == CONFIG and Path(path).parent.name != listing.commit:
                raise HubError(f"{listing.repo} changed on the hub during the download; run the command again.")
            if not present:
                shown.advance(max(0, (listing.sizes[name] or 0) - bar.received), name)
    if wanted:
        shown.finish()


class _Bar:
    """What huggingface_hub needs of a tqdm class; the byte counts go to `progress`."""

    progress: Progress
    label: str
    received: int

    def __init__(self, *args: object, **kwargs: Any) -> None:
        self.total = kwargs.get("total")

    def update(self, n: float | None = 1) -> None:
        # Negative when the server ignored a range and the file starts afresh.
        type(self).received += int(n or 0)
        self.progress.advance(int(n or 0), self.label)

    def update_transfer(self, n: float | None = 1) -> None: ...

    def set_postfix_str(self, *args: object, **kwargs: object) -> None: ...

    def set_transfer_postfix_str(self, *args: object, **kwargs: object) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


def bar_class(progress: Progress, name: str) -> type[_Bar]:
    """What stands for tqdm in a download and reports to `progress` instead."""
    return type("Bar", (_Bar,), {"progress": progress, "label": name, "received": 0})


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep huggingface_hub's warnings (each retry) from breaking the progress bar; errors still come as exceptions."""
    import logging

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    if level != logging.DEBUG:  # HF_DEBUG=1
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_space(n_bytes: int, listing: Listing) -> None:
    folder = hubcache.cache_folder()
    existing = next((f for f in (folder, *folder.parents) if f.exists()), None)
    if existing is None:
        return
    free = shutil.disk_usage(existing).free
    if n_bytes > free:
        raise OutputError(
            f"{folder}: {listing.repo} needs {format_bytes(n_bytes)} and only {format_bytes(free)} are free. "
            "Free some space, or set HF_HUB_CACHE to a folder on another disk."
        )


@contextmanager
def translated(repo: str, revision: str | None, kind: hubcache.Kind = "model") -> Iterator[None]:
    """Turn whatever huggingface_hub raises into an LlmkitError."""
    try:
        yield
    except LlmkitError:
        raise
    except Exception as error:  # the HTTP client's own exceptions come through, and their package varies
        raise _translate(error, repo, revision, kind) from error


def _translate(error: Exception, repo: str, revision: str | None, kind: hubcache.Kind) -> LlmkitError:
    from huggingface_hub import __version__ as library_version
    from huggingface_hub import errors, get_token

    constants = hubcache.hub_constants()
    where = _label(repo, revision)
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    has_token = bool(get_token())
    for cause in _causes(error):
        if isinstance(cause, errors.GatedRepoError):
            do = (
                f"ask for access on {page} with the account of your token"
                if has_token
                else f"accept its terms on {page}, then {login}"
            )
            return HubError(f"{repo} is gated and you have no access to it yet: {do}.")
        if isinstance(cause, errors.DisabledRepoError):
            return HubError(f"{repo} has been disabled on the hub.")
        if isinstance(cause, errors.RevisionNotFoundError):
            return RevisionNotFoundError(
                f"{repo} has no revision {revision or 'main'!r}; its branches and tags are on {page}/tree/main."
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            private = "your token may not read it" if has_token else f"if it is private, {login}"
            return ModelNotFoundError(f"The hub has no {kind} {repo} ({page}); check the spelling, and {private}.")
        if isinstance(cause, errors.HfHubHTTPError):
            return HubError(_http_message(cause.response.status_code, where, constants.ENDPOINT, login))
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return HubError(_offline_message(repo, revision))
        if isinstance(cause, errors.HFValidationError):
            return ModelNotFoundError(f"{repo!r} is not a repository name: expected org/name.")
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutputError(
                f"{hubcache.cache_folder()}: no space left while downloading {where}. Free some, or set HF_HUB_CACHE "
                "to a folder on another disk. Finished files are kept."
            )
        if isinstance(cause, PermissionError) or (isinstance(cause, OSError) and cause.errno == errno.EROFS):
            return OutputError(f"{cause.filename or hubcache.cache_folder()}: the cache cannot be written: {cause}")
    root = _causes(error)[-1]
    if isinstance(root, TypeError | AttributeError | LookupError | AssertionError | json.JSONDecodeError):
        return HubError(
            f"{constants.ENDPOINT} gave an answer for {where} that huggingface_hub {library_version} does not "
            f"understand ({type(root).__name__}: {root}). Is it a Hugging Face hub? --debug shows more."
        )
    said = str(root).splitlines()[0].strip().rstrip(".") if str(root).strip() else ""
    return HubError(f"Could not fetch {where} from {constants.ENDPOINT}: {said or type(root).__name__}.{_TRY_AGAIN}")


def _http_message(status: int, where: str, endpoint: str, login: str) -> str:
    if status == 401:
        return f"{endpoint} does not accept the token it was sent for {where}: {login} afresh."
    if status == 403:
        return f"{endpoint} forbids access to {where}: {login} with an account that may read it."
    if status == 429:
        return f"{endpoint} has had too many requests from here; wait some minutes and run the command again."
    if status >= 500:
        return f"{endpoint} failed with status {status} for {where}; run the command again later."
    return f"{endpoint} answered status {status} for {where}."


def _offline_message(repo: str, revision: str | None) -> str:
    snapshot = hubcache.cached_snapshot(repo, revision)
    where = _label(repo, revision)
    if snapshot is not None:
        missing = hubcache.missing_weights(snapshot.path, hubcache.folder_contents(snapshot.path))
        state = f"{where} is in the cache, but not complete ({', '.join(missing[:3])} missing)"
    else:
        state = f"{where} is not in the cache ({hubcache.cache_folder()})"
    return f"{state}, and HF_HUB_OFFLINE is set. Unset it to download the model."


def _complete_snapshot(repo: str, revision: str | None) -> hubcache.CachedSnapshot | None:
    snapshot = hubcache.cached_snapshot(repo, revision)
    if snapshot is None:
        return None
    found = hubcache.folder_contents(snapshot.path)
    return snapshot if found.is_checkpoint and not hubcache.missing_weights(snapshot.path, found) else None


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__
    return chain


def _label(repo: str, revision: str | None) -> str:
    return repo if revision is None else f"{repo}@{revision}"


def _is_safe(name: str) -> bool:
    """A relative path inside the repository; the server is not trusted with more."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)
