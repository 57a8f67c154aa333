"""Downloads through the real huggingface_hub from a small server on this machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit import hub, hubcache
from llmkit.errors import HubError, LlmkitError, ModelNotFoundError, OutputError
from llmkit.models import resolve
from tests.fakehub import NEEDED, REPO, SHARDS, UNNEEDED, FakeHub, FakeRepo


class Recorder:
    """A Progress that keeps what it was told."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.received = 0
        self.finished = 0

    def start(self, title: str, total: int, unit: str = "B") -> None:
        self.totals.append(total)

    def advance(self, amount: int, label: str = "") -> None:
        self.received += amount

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running hub that huggingface_hub, in this process, takes for the real one, with an empty cache."""
    constants = hubcache.hub_constants()
    from huggingface_hub.utils import close_session

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FakeHub() as server:
        server.repos[REPO] = FakeRepo({**NEEDED, **UNNEEDED})
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
        close_session()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubcache.hub_constants(), "HF_HUB_OFFLINE", True)


def test_fetches_the_needed_files_and_no_other(fake: FakeHub) -> None:
    progress = Recorder()
    fetched = hub.fetch(REPO, progress=progress)
    assert fetched.commit == "c" * 40
    assert fetched.note is None
    found = {p.relative_to(fetched.path).as_posix() for p in fetched.path.rglob("*") if p.is_file()}
    assert found == set(NEEDED)
    assert all((fetched.path / name).read_bytes() == data for name, data in NEEDED.items())
    assert set(fake.fetched()) == set(NEEDED)
    weights = sum(len(NEEDED[name]) for name in SHARDS)
    assert progress.totals == [weights]
    assert progress.received == weights
    assert progress.finished == 1


def test_prefers_the_single_file_over_shards(fake: FakeHub) -> None:
    fake.repos[REPO].files["model.safetensors"] = b"single"
    fetched = hub.fetch(REPO)
    assert [n for n in fake.fetched() if "safetensors" in n] == ["model.safetensors"]
    assert (fetched.path / "model.safetensors").read_bytes() == b"single"


def test_sends_no_details_of_this_machine(fake: FakeHub) -> None:
    hub.fetch(REPO)
    for request in fake.requests:
        assert "agent" not in request.agent
        assert request.path.startswith((f"/api/models/{REPO}", f"/{REPO}/resolve/"))


def test_second_fetch_asks_for_the_listing_only(fake: FakeHub) -> None:
    first = hub.fetch(REPO)
    fake.requests.clear()
    assert hub.fetch(REPO) == first
    assert [r.path.partition("?")[0] for r in fake.requests] == [f"/api/models/{REPO}"]


def test_offline_uses_the_cache_without_the_network(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.fetch(REPO)
    fake.requests.clear()
    go_offline(monkeypatch)
    assert hub.fetch(REPO) == first
    assert not fake.requests


def test_offline_without_a_cached_copy(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch)
    with pytest.raises(HubError, match=r"not in the cache .* and HF_HUB_OFFLINE is set"):
        hub.fetch(REPO)
    assert not fake.requests


def test_offline_with_an_incomplete_copy(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub.fetch(REPO).path / SHARDS[1]).unlink()
    go_offline(monkeypatch)
    with pytest.raises(HubError, match=rf"not complete \({SHARDS[1]} missing\)"):
        hub.fetch(REPO)


def test_unreachable_hub_falls_back_on_the_cache_and_says_so(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.fetch(REPO)
    monkeypatch.setattr(hubcache.hub_constants(), "ENDPOINT", "http://127.0.0.1:9")
    again = hub.fetch(REPO)
    assert again.path == first.path
    assert again.note is not None
    assert "Connection refused" in again.note
    assert again.note.endswith(". Using the cached copy, commit cccccccccccc.")
    assert "again" not in again.note


def test_unreachable_hub_without_a_cached_copy(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubcache.hub_constants(), "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        HubError, match=r"Could not fetch .* from http://127.0.0.1:9: .*refused.*\. Check the connection"
    ):
        hub.fetch(REPO)


def test_a_broken_transfer_resumes_where_it_stopped(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubcache.hub_constants(), "DOWNLOAD_CHUNK_SIZE", 100_000)  # resumes at whole chunks
    fake.cut[SHARDS[0]] = [300_000]
    progress = Recorder()
    fetched = hub.fetch(REPO, progress=progress)
    assert (fetched.path / SHARDS[0]).read_bytes() == NEEDED[SHARDS[0]]
    ranges = [r.range for r in fake.requests if r.path.endswith(SHARDS[0]) and r.method == "GET" and r.range]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").rstrip("-")) <= 300_000
    assert progress.received == progress.totals[0]


def test_a_broken_transfer_starts_afresh_when_ranges_are_ignored(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubcache.hub_constants(), "DOWNLOAD_CHUNK_SIZE", 100_000)
    fake.cut[SHARDS[0]] = [300_000]
    fake.ignore_ranges = True
    progress = Recorder()
    fetched = hub.fetch(REPO, progress=progress)
    assert (fetched.path / SHARDS[0]).read_bytes() == NEEDED[SHARDS[0]]
    assert progress.received == progress.totals[0]


def test_an_abandoned_download_keeps_finished_files(fake: FakeHub) -> None:
    fake.fail_files[SHARDS[1]] = 403
    with pytest.raises(HubError, match="forbids access"):
        hub.fetch(REPO)
    cache = hubcache.cache_folder()
    assert not list(cache.rglob("*.incomplete"))
    fake.fail_files.clear()
    fake.requests.clear()
    fetched = hub.fetch(REPO)
    assert fake.fetched() == [SHARDS[1]]
    assert (fetched.path / SHARDS[1]).read_bytes() == NEEDED[SHARDS[1]]


def test_revisions(fake: FakeHub) -> None:
    fake.repos[REPO].revisions = {"refs/pr/1": "d" * 40, "v1.0": "e" * 40}
    assert hub.fetch(REPO, "refs/pr/1").commit == "d" * 40
    assert hub.fetch(REPO, "v1.0").commit == "e" * 40
    assert hubcache.cached_commit(REPO, "v1.0") == "e" * 40
    assert hubcache.cached_commit(REPO, "main") is None
    fake.requests.clear()
    assert hub.fetch(REPO, "e" * 40).commit == "e" * 40
    assert not fake.requests  # a commit never changes


def test_a_new_commit_fetches_only_what_changed(fake: FakeHub) -> None:
    hub.fetch(REPO)
    fake.requests.clear()
    fake.repos[REPO].commit = "f" * 40
    fake.repos[REPO].files["README.md"] = b"# Tiny, second edition"
    fetched = hub.fetch(REPO)
    assert fetched.commit == "f" * 40
    assert fake.fetched() == ["README.md"]
    assert (fetched.path / "README.md").read_bytes() == b"# Tiny, second edition"
    assert hubcache.cached_commit(REPO, "main") == "f" * 40


def test_missing_revision(fake: FakeHub) -> None:
    hub.fetch(REPO)  # a cached main must not stand in for it
    with pytest.raises(ModelNotFoundError, match=rf"{REPO} has no revision 'v9'"):
        hub.fetch(REPO, "v9")
    with pytest.raises(ModelNotFoundError, match=rf"^{REPO} has no revision 'v9'"):  # nothing about files here
        resolve(f"{REPO}@v9")


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_missing_repository(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelNotFoundError, match="The hub has no model no-org/none") as caught:
        hub.fetch("no-org/none")
    assert ("your token may not read it" if token else "HF_TOKEN") in str(caught.value)


def test_private_repository(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.repos[REPO].private = True
    with pytest.raises(ModelNotFoundError, match="hf auth login"):
        hub.fetch(REPO)
    monkeypatch.setenv("HF_TOKEN", fake.token)
    assert hub.fetch(REPO).commit == "c" * 40


def test_gated_repository(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.repos[REPO].gated = True
    with pytest.raises(HubError, match=f"accept its terms on {fake.url}/{REPO}, then log in .* HF_TOKEN"):
        hub.fetch(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match="ask for access"):
        hub.fetch(REPO)
    monkeypatch.setenv("HF_TOKEN", fake.token)
    assert hub.fetch(REPO).commit == "c" * 40
    on_cdn = [r for r in fake.requests if r.method == "GET" and r.path.endswith(SHARDS) and r.status == 200]
    assert len(on_cdn) == 2
    assert all(r.token is None for r in on_cdn)  # the token stays with the hub


def test_expired_token(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", fake.expired_token)
    with pytest.raises(HubError, match="does not accept the token it was sent for"):
        hub.fetch(REPO)


@pytest.mark.parametrize(
    ("status", "message"),
    [(500, "failed with status 500"), (503, "failed with status 503"), (429, "too many requests")],
)
def test_server_errors(fake: FakeHub, status: int, message: str) -> None:
    fake.fail_api = status
    with pytest.raises(HubError, match=message):
        hub.fetch(REPO)


@pytest.mark.parametrize("body", [b"<html>a login page</html>", b"[]", b"{}", b'{"id": 3, "siblings": [{}]}'])
def test_answers_of_something_else_than_a_hub(fake: FakeHub, body: bytes) -> None:
    fake.api_body = body
    with pytest.raises(HubError, match=r"gave an answer .* does not understand|names no commit"):
        hub.fetch(REPO)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config.json": b"{}", "a.bin": b"", "b.bin": b""},
            r"2 PyTorch files .a.bin, b.bin. but neither pytorch_model.bin nor an index",
        ),
        ({"q/tiny-Q4_K_M.gguf": b""}, r"GGUF files.*hf download tiny-org/Tiny-Llama q/tiny-Q4_K_M.gguf"),
        ({"adapter_config.json": b"", "adapter_model.safetensors": b""}, r"LoRA adapter.*merge_and_unload"),
        ({"params.json": b"", "consolidated.safetensors": b""}, "Mistral's own layout"),
        ({"model.safetensors": b""}, "no config.json"),
        ({"config.json": b"{}", "onnx/model.onnx": b""}, "holds onnx/model.onnx"),
        ({"config.json": b"{}", "a.safetensors": b"", "b.safetensors": b""}, "no model.safetensors.index.json"),
        ({"README.md": b""}, "holds no model"),
    ],
)
def test_repositories_without_a_checkpoint(fake: FakeHub, files: dict[str, bytes], message: str) -> None:
    fake.repos[REPO].files = files
    with pytest.raises(ModelNotFoundError, match=message):
        hub.fetch(REPO)
    assert not fake.fetched()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b'{"weight_map": {"a": "model-00009.safetensors"}}', "names model-00009.safetensors, not in the repository"),
        (b'{"weight_map": {"a": "../../../../etc/passwd"}}', "names no files"),
        (b"not JSON", "names no files"),
    ],
)
def test_broken_index(fake: FakeHub, index: bytes, message: str) -> None:
    fake.repos[REPO].files["model.safetensors.index.json"] = index
    with pytest.raises(ModelNotFoundError, match=message):
        hub.fetch(REPO)
    assert not [n for n in fake.fetched() if n.endswith(".safetensors")]


def test_file_names_cannot_leave_the_cache(fake: FakeHub, tmp_path: Path) -> None:
    fake.repos[REPO].files["additional_chat_templates/../../../../../evil.jinja"] = b"evil"
    fake.repos[REPO].files["../LICENSE"] = b"evil"
    hub.fetch(REPO)
    assert not list(tmp_path.rglob("evil*"))
    assert not any("evil" in r.path or ".." in r.path for r in fake.requests)


def test_too_little_space_is_seen_before_the_download(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(hubcache.cache_folder().parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(OutputError, match=r"needs 1\.0 MB and only 1\.0 MB are free|HF_HUB_CACHE"):
        hub.fetch(REPO)
    assert not [n for n in fake.fetched() if n.endswith(".safetensors")]


def test_disk_full(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.file_download as library

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(library, "_chmod_and_move", full)
    with pytest.raises(OutputError, match="no space left while downloading"):
        hub.fetch(REPO)


def test_cache_that_cannot_be_written(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the cache should be")
    with pytest.raises(LlmkitError):
        hub.fetch(REPO)


def test_resolve_names_repository_and_commit(fake: FakeHub) -> None:
    found = resolve(f"{REPO}@main", want="checkpoint")
    assert (found.name, found.kind, found.repo, found.revision) == ("Tiny-Llama", "checkpoint", REPO, "c" * 40)
    assert resolve(f"hf://{REPO}") == found
    assert resolve(f"https://huggingface.co/{REPO}/tree/main") == found
    with pytest.raises(
        ModelNotFoundError, match=r"There is no file or folder tiny-org/none here\. The hub has no model"
    ):
        resolve("tiny-org/none")
