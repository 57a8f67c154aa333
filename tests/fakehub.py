"""A small Hugging Face hub on 127.0.0.1: the endpoints that huggingface_hub uses to list and fetch a model.

It answers as the real one does where that matters: commit and ETag headers, error codes in X-Error-Code, ranges,
large files redirected to another host (here `localhost`, which is another origin than 127.0.0.1), and gated
repositories whose listing is public while their files are not.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

# A repository as they are: what a conversion needs, and all the rest.
REPO = "tiny-org/Tiny-Llama"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NEEDED = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "README.md": b"# Tiny",
    "LICENSE": b"Apache",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: bytes(range(256)) * 4000,
    SHARDS[1]: b"second" * 1000,
}
UNNEEDED = {
    ".gitattributes": b"*",
    "pytorch_model.bin": b"pickle",
    "original/consolidated.00.pth": b"pickle",
    "consolidated.safetensors": b"duplicate",
    "onnx/model.onnx": b"onnx",
    "tiny.Q4_K_M.gguf": b"GGUF",
    "modeling_tiny.py": b"raise SystemExit",
    "model-00001-of-00001.safetensors": b"not in the index",
    "images/banner.png": b"png",
}


@dataclass
class FakeRepo:
    files: dict[str, bytes]
    commit: str = "c" * 40
    revisions: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit, besides main
    gated: bool = False
    private: bool = False

    def commit_of(self, revision: str) -> str | None:
        known = {"main": self.commit, self.commit: self.commit, **self.revisions}
        known.update({commit: commit for commit in self.revisions.values()})
        return known.get(revision)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    agent: str
    status: int


class FakeHub:
    """Use as a context manager; `url` is the endpoint, `requests` the log."""

    token = "hf_fake"  # the one token that may read private and gated repositories
    expired_token = "hf_expired"

    def __init__(self) -> None:
        self.repos: dict[str, FakeRepo] = {}
        self.requests: list[Request] = []
        self.fail_api: int | None = None  # status for every API call
        self.api_body: bytes | None = None  # instead of the listing
        self.fail_files: dict[str, int] = {}  # file -> status of its GET
        self.cut: dict[str, list[int]] = {}  # file -> where to cut each next transfer short
        self.ignore_ranges = False
        self.stalled = threading.Event()  # set when a transfer of `stall` has begun and will not go on
        self.stall: str | None = None
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for, in order."""
        return [
            r.path.rpartition("/resolve/")[2].partition("/")[2]
            for r in self.requests
            if r.method == "GET" and "/resolve/" in r.path
        ]

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith("/api/models/"):
                self.api(path.removeprefix("/api/models/"))
            elif path.startswith("/api/datasets/"):  # in `repos` their names begin with datasets/, as in addresses
                self.api(path.removeprefix("/api/"))
            elif "/resolve/" in path:
                self.resolve(path)
            else:
                self.reply(404, b"{}")

        def api(self, path: str) -> None:
            name, _, revision = path.partition("/revision/")
            revision = unquote(revision)
            repo = hub.repos.get(name)
            if hub.fail_api is not None:
                self.reply(hub.fail_api, b"broken")
            elif hub.api_body is not None:
                self.reply(200, hub.api_body)
            elif self.bearer() == hub.expired_token:
                self.reply(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
            elif repo is None or (repo.private and self.bearer() != hub.token):
                # The real hub does not tell those without a token whether a repository exists.
                status = 401 if self.bearer() is None else 404
                self.reply(status, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            elif (commit := repo.commit_of(revision or "main")) is None:
                self.reply(404, b'{"error":"Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            else:
                siblings = [{"rfilename": n, "size": len(b), "blobId": _etag(b)} for n, b in repo.files.items()]
                body = {"id": name, "sha": commit, "siblings": siblings, "gated": "auto" if repo.gated else False}
                self.reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def resolve(self, path: str) -> None:
            name, _, rest = path.strip("/").partition("/resolve/")
            revision, file = map(unquote, rest.split("/", 1))
            repo = hub.repos.get(name)
            commit = repo.commit_of(revision) if repo else None
            if repo is None:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif commit is None:
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif (repo.gated or repo.private) and self.bearer() != hub.token and not self.on_cdn():
                self.reply(401 if self.bearer() is None else 403, b"", {"X-Error-Code": "GatedRepo"})
            elif file not in repo.files:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            elif self.command == "GET" and file in hub.fail_files:
                self.reply(hub.fail_files[file], b"broken")
            else:
                self.send_file(repo.files[file], file, commit)

        def send_file(self, data: bytes, file: str, commit: str) -> None:
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(data)}"', "Accept-Ranges": "bytes"}
            if file.endswith(".safetensors") and not self.on_cdn():
                headers |= {
                    "X-Linked-Etag": headers["ETag"],
                    "X-Linked-Size": str(len(data)),
                    "Location": f"http://localhost:{hub.port}{self.path}",
                }
                self.reply(302, b"", headers)
                return
            start, wanted = 0, self.headers.get("Range")
            status = 200
            if wanted and not hub.ignore_ranges:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                status = 206
            if self.command == "GET" and file == hub.stall:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                hub.stalled.set()
                hub._stopped.wait(30)
                return
            cut = hub.cut[file].pop(0) if self.command == "GET" and hub.cut.get(file) else None
            self.reply(status, data[start:], headers, cut)

        def reply(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            hub.requests.append(
                Request(
                    self.command,
                    self.path,
                    self.headers.get("Range"),
                    self.bearer(),
                    self.headers.get("User-Agent", ""),
                    status,
                )
            )
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.close_connection = True

        def bearer(self) -> str | None:
            value = self.headers.get("Authorization")
            return value.removeprefix("Bearer ") if value else None

        def on_cdn(self) -> bool:
            return self.headers.get("Host", "").startswith("localhost")

    return Handler


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
