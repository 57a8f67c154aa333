"""Downloads by processes of their own: what the environment says, what a kill leaves, the command line as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakehub import NEEDED, REPO, SHARDS, UNNEEDED, FakeHub, FakeRepo
from tests.tinymodels import TinyLlama


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with FakeHub() as server:
        server.repos[REPO] = FakeRepo({**NEEDED, **UNNEEDED})
        yield server


def environment_for(fake: FakeHub, home: Path) -> dict[str, str]:
    """The environment of a process that is to take `fake` for the hub, with an empty cache under `home`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    return kept | {"HF_ENDPOINT": fake.url, "HF_HOME": str(home), "HF_TOKEN": fake.token}


PROGRAM = (
    "from llmkit.models import resolve; from llmkit.progress import for_stderr; import sys\n"
    f"print(resolve('{REPO}', progress=for_stderr('-q' in sys.argv)).path)"
)


def test_a_killed_download_is_made_good_by_the_next(fake: FakeHub, tmp_path: Path) -> None:
    environment = environment_for(fake, tmp_path / "home")
    fake.stall = SHARDS[1]
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stderr=subprocess.DEVNULL) as process:
        assert fake.stalled.wait(30)
        process.kill()
    fake.stall = None
    fake.requests.clear()
    again = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    folder = Path(again.stdout.strip())
    assert all((folder / name).read_bytes() == data for name, data in NEEDED.items())
    assert fake.fetched() == [SHARDS[1]]


def test_the_environment_decides(fake: FakeHub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, in a process of its own: the library reads them at import."""
    fake.repos[REPO].private = True
    environment = environment_for(fake, tmp_path / "home")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *args],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )

    first = run()
    folder = Path(first.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert (folder / SHARDS[0]).read_bytes() == NEEDED[SHARDS[0]]
    assert first.stderr.splitlines()[0] == f"Downloading {REPO} (1.0 MB)"
    assert "done in" in first.stderr.splitlines()[-1]
    fake.requests.clear()
    environment |= {"HF_HUB_OFFLINE": "1"}
    assert run("-q").stdout == first.stdout
    assert run("-q").stderr == ""
    assert not fake.requests


def test_a_repository_becomes_a_gguf_file(fake: FakeHub, tmp_path: Path) -> None:
    """The command line as a user types it: download, conversion, and inspection of what came out."""
    folder = TinyLlama(n_shards=2).write(tmp_path / "source")
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    fake.repos["tiny-org/Real"] = FakeRepo({**files, "pytorch_model.bin": b"pickle"})
    environment = environment_for(fake, tmp_path / "home")

    def llmkit(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from llmkit.cli import main; main()", *args]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)

    options = ("--to", "gguf-q8_0")
    converted = llmkit("convert", "tiny-org/Real", *options)
    assert converted.returncode == 0, converted.stderr
    assert "Downloading tiny-org/Real" in converted.stderr
    assert (tmp_path / "Real-Q8_0.gguf").is_file()
    environment["HF_HUB_OFFLINE"] = "1"
    by_word = llmkit("convert", "real", *options, "-o", "again.gguf")
    assert by_word.returncode == 0, by_word.stderr
    assert "note: 'real' is tiny-org/Real in the Hugging Face cache" in by_word.stderr
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "Real-Q8_0.gguf").read_bytes()
    found = json.loads(llmkit("inspect", "Real-Q8_0.gguf", "--json").stdout)
    assert (found["kind"], found["architecture"], found["gguf"]["file_type"]) == ("gguf", "llama", "Q8_0")
    fake.requests.clear()
    refused = llmkit("convert", "tiny-org/None", *options)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("llmkit: tiny-org/None is not in the cache")
    assert len(refused.stderr.splitlines()) == 1
    assert not fake.requests
