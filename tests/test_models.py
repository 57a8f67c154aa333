"""MODEL arguments and the list of models, on folders that hold names only: nothing here opens a weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llmkit import hubcache
from llmkit.cli import cli
from llmkit.errors import HubError, ModelNotFoundError
from llmkit.formats.checkpointfiles import contents, gguf_models
from llmkit.formats.files import user_path
from llmkit.localmodels import LocalModel, list_models, match
from llmkit.models import resolve

COMMIT = "a" * 40


def touch(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, args, obj={"quiet": False}, catch_exceptions=False)


def checkpoint(folder: Path) -> Path:
    return touch(folder, ["config.json", "model.safetensors", "tokenizer.json"])


def cached(repo: str, names: Iterable[str] = ("config.json", "model.safetensors"), commit: str = COMMIT) -> Path:
    folder = hubcache.repo_folder(repo)
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return touch(folder / "snapshots" / commit, names)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder and an empty cache; the network is out of bounds."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(hubcache.hub_constants(), "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hubcache.hub_constants(), "HF_HUB_OFFLINE", True)
    return folder


class TestPaths:
    def test_checkpoint_folder(self, here: Path) -> None:
        checkpoint(here / "tiny")
        for argument in ("tiny", "./tiny", "tiny/", str(here / "tiny")):
            found = resolve(argument)
            assert (found.name, found.kind, found.repo, found.note) == ("tiny", "checkpoint", None, None)
            assert found.path.samefile(here / "tiny")

    def test_the_current_folder_has_its_own_name(self, here: Path) -> None:
        checkpoint(here)
        assert resolve(".").name == "here"

    def test_home_folder(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(here))
        checkpoint(here / "tiny")
        assert resolve("~/tiny").path == here / "tiny"

    def test_gguf_file(self, here: Path) -> None:
        touch(here, ["tiny-Q4_K_M.gguf"])
        found = resolve("tiny-Q4_K_M.gguf", want="gguf")
        assert (found.name, found.kind) == ("tiny-Q4_K_M", "gguf")

    def test_gguf_file_of_any_name(self, here: Path) -> None:
        (here / "model").write_bytes(b"GGUF\3\0\0\0")
        assert resolve("model").kind == "gguf"

    def test_folder_with_one_gguf_file(self, here: Path) -> None:
        touch(here / "tiny", ["tiny.gguf", "mmproj-tiny.gguf", "README.md"])
        found = resolve("tiny", want="gguf")
        assert found.path == Path("tiny/tiny.gguf")
        assert found.note == "Using tiny/tiny.gguf"

    def test_folder_with_a_split_model(self, here: Path) -> None:
        touch(here / "tiny", [f"tiny-{n:05d}-of-00003.gguf" for n in (1, 2, 3)])
        found = resolve("tiny", want="gguf")
        assert (found.path.name, found.name) == ("tiny-00001-of-00003.gguf", "tiny")

    def test_a_later_part_of_a_split_model(self, here: Path) -> None:
        touch(here, ["tiny-00002-of-00003.gguf"])
        with pytest.raises(ModelNotFoundError, match=r"part 2 of a split model.*tiny-00001-of-00003\.gguf"):
            resolve("tiny-00002-of-00003.gguf")

    def test_folder_with_several_gguf_files(self, here: Path) -> None:
        touch(here / "tiny", ["a.gguf", "b.gguf"])
        with pytest.raises(ModelNotFoundError, match=r"several GGUF files.*\n  a\.gguf\n  b\.gguf"):
            resolve("tiny")

    def test_checkpoint_with_its_conversion_beside_it(self, here: Path) -> None:
        touch(checkpoint(here / "tiny"), ["tiny-Q4_0.gguf"])
        assert resolve("tiny").kind == "checkpoint"
        assert resolve("tiny", want="checkpoint").kind == "checkpoint"
        assert resolve("tiny", want="gguf").path == Path("tiny/tiny-Q4_0.gguf")

    def test_organisation_folder(self, here: Path) -> None:
        checkpoint(here / "meta-llama" / "Llama-3.2-1B")
        found = resolve("meta-llama", want="checkpoint")
        assert found.name == "Llama-3.2-1B"
        assert found.note == "Using meta-llama/Llama-3.2-1B, the only model in meta-llama"
        checkpoint(here / "meta-llama" / "Llama-3.2-3B")
        with pytest.raises(ModelNotFoundError, match=r"several models.*\n  meta-llama/Llama-3\.2-1B\n.*3B"):
            resolve("meta-llama")

    def test_a_folder_named_like_a_repository_comes_first(self, here: Path) -> None:
        cached("org/tiny")
        checkpoint(here / "org" / "tiny")
        assert resolve("org/tiny").path == Path("org/tiny")
        assert resolve("hf://org/tiny").repo == "org/tiny"

    def test_checkpoint_where_a_gguf_file_is_needed(self, here: Path) -> None:
        checkpoint(here / "tiny")
        with pytest.raises(ModelNotFoundError, match=r"llmkit convert tiny --to gguf-q4"):
            resolve("tiny", want="gguf")
        touch(here, ["tiny-Q4_K_M.gguf"])
        with pytest.raises(ModelNotFoundError, match=r"is needed\. Already here: tiny-Q4_K_M\.gguf\.$"):
            resolve("tiny", want="gguf")

    def test_gguf_file_where_a_checkpoint_is_needed(self, here: Path) -> None:
        touch(here, ["tiny.gguf"])
        with pytest.raises(ModelNotFoundError, match=r"GGUF file already; a conversion starts from a SafeTensors"):
            resolve("tiny.gguf", want="checkpoint")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("model.safetensors", r"one SafeTensors file; .* Give the folder: sub"),
            ("pytorch_model.bin", r"pytorch_model\.bin is one PyTorch file; .* Give the folder: sub"),
            ("consolidated.00.pth", r"consolidated\.00\.pth is one PyTorch file"),
            ("notes.txt", r"is no model: expected a checkpoint folder or a \.gguf file"),
        ],
    )
    def test_other_files(self, here: Path, name: str, message: str) -> None:
        touch(here / "sub", [name])
        with pytest.raises(ModelNotFoundError, match=message):
            resolve(f"sub/{name}")

    def test_cache_folder_given_as_path(self) -> None:
        path = cached("org/tiny").parent.parent
        with pytest.raises(ModelNotFoundError, match="give its name: org/tiny"):
            resolve(str(path))

    def test_empty_folder(self, here: Path) -> None:
        (here / "empty").mkdir()
        with pytest.raises(ModelNotFoundError, match="The folder empty holds no model"):
            resolve("empty")

    def test_missing_path_names_what_is_near(self, here: Path) -> None:
        checkpoint(here / "tiny-llama")
        with pytest.raises(ModelNotFoundError, match=r"no such file or folder\. Did you mean tiny-llama\?"):
            resolve("./tiny-lama")
        with pytest.raises(ModelNotFoundError, match="There is no folder nowhere either"):
            resolve("./nowhere/tiny")
        touch(here, ["other-Q4_0.gguf"])
        with pytest.raises(ModelNotFoundError, match=r"GGUF files in \.: other-Q4_0\.gguf"):
            resolve("my.gguf")

    def test_empty_argument(self) -> None:
        with pytest.raises(ModelNotFoundError, match="name is empty"):
            resolve(" ")


class TestRepositories:
    def test_cached(self) -> None:
        path = cached("org/Tiny")
        found = resolve("org/Tiny", want="checkpoint")
        assert (found.path, found.name, found.repo, found.revision) == (path, "Tiny", "org/Tiny", COMMIT)

    def test_not_cached_and_not_to_be_downloaded(self) -> None:
        with pytest.raises(
            ModelNotFoundError, match=r"no folder org/Tiny here, and the Hugging Face cache \(.*\) holds"
        ):
            resolve("org/Tiny", download=False)

    def test_a_path_with_a_typo_looks_like_a_repository(self, here: Path) -> None:
        checkpoint(here / "models" / "tiny-llama")
        with pytest.raises(
            HubError, match=r"no file or folder models/tiny-lama here\. Did you mean models/tiny-llama\?.*OFFLINE"
        ):
            resolve("models/tiny-lama")
        with pytest.raises(HubError, match=r"^org/tiny is not in the cache"):
            resolve("org/tiny")

    def test_cached_gguf(self) -> None:
        path = cached("org/Tiny-GGUF", ["tiny.Q4_0.gguf"])
        assert resolve("org/Tiny-GGUF", want="gguf").path == path / "tiny.Q4_0.gguf"

    def test_repository_where_a_gguf_file_is_needed(self) -> None:
        cached("org/Tiny")
        with pytest.raises(
            ModelNotFoundError, match=r"llmkit convert org/Tiny --to gguf-q4.*hf download org/Tiny FILE"
        ):
            resolve("org/Tiny", want="gguf")

    @pytest.mark.parametrize("model", ["org/Tiny", "org"])
    def test_gguf_files_of_the_same_model_are_named_and_no_others(self, here: Path, model: str) -> None:
        cached("org/Tiny")
        others = ["Tiny-Instruct-F16.gguf", "Tiny2-F16.gguf", "Tiny-mine.gguf"]
        touch(here, others)
        with pytest.raises(ModelNotFoundError, match=r"llmkit convert org/Tiny --to gguf-q4") as caught:
            resolve(model, want="gguf")
        assert "Tiny-Instruct" not in str(caught.value)
        touch(here, ["Tiny-Q4_K_M.gguf"])
        touch(here / "sub", ["tiny-bf16.gguf"])
        with pytest.raises(ModelNotFoundError) as caught:
            resolve(model, want="gguf")
        assert str(caught.value).endswith("is needed. Already here: Tiny-Q4_K_M.gguf, sub/tiny-bf16.gguf.")

    @pytest.mark.parametrize("revision", ["../../../etc", "..", "v1/../../.."])
    def test_revisions_cannot_leave_the_cache(self, revision: str) -> None:
        cached("org/Tiny")
        assert hubcache.cached_commit("org/Tiny", revision) is None

    def test_without_main_the_latest_snapshot_counts(self) -> None:
        cached("org/Tiny")
        newer = cached("org/Tiny", commit="b" * 40)
        (hubcache.repo_folder("org/Tiny") / "refs" / "main").unlink()
        os.utime(newer.parent / COMMIT, (1, 1))
        assert hubcache.cached_commit("org/Tiny", None) == "b" * 40
        assert hubcache.cached_commit("org/Tiny", "main") is None


class TestWords:
    def test_one_match_in_the_cache_is_used_and_named(self) -> None:
        path = cached("meta-llama/Llama-3.2-1B")
        cached("org/other")
        found = resolve("meta-llama", want="checkpoint")
        assert (found.path, found.repo, found.revision) == (path, "meta-llama/Llama-3.2-1B", COMMIT)
        assert found.note == "'meta-llama' is meta-llama/Llama-3.2-1B in the Hugging Face cache"

    def test_one_match_here_is_used_and_named(self, here: Path) -> None:
        checkpoint(here / "SmolLM2-135M-Instruct")
        found = resolve("smollm2-135m")
        assert found.path == Path("SmolLM2-135M-Instruct")
        assert found.note == "'smollm2-135m' is SmolLM2-135M-Instruct here"

    def test_several_are_listed(self, here: Path) -> None:
        cached("meta-llama/Llama-3.2-1B")
        cached("meta-llama/Llama-3.2-3B")
        with pytest.raises(
            ModelNotFoundError, match=r"several models.*\n  meta-llama/Llama-3\.2-1B.*\n  meta-llama/Llama-3\.2-3B"
        ):
            resolve("meta-llama")

    def test_the_kind_that_is_needed_decides(self, here: Path) -> None:
        checkpoint(here / "tiny")
        touch(here, ["tiny-1b-Q4_0.gguf"])
        assert resolve("tiny-1", want="gguf").path == Path("tiny-1b-Q4_0.gguf")
        with pytest.raises(ModelNotFoundError, match="a GGUF file already"):
            resolve("1b", want="checkpoint")
        cached("org/alone")
        with pytest.raises(ModelNotFoundError, match=r"a GGUF file is needed.*llmkit convert org/alone --to gguf-q4"):
            resolve("alone", want="gguf")

    def test_no_match_says_how_to_get_one(self) -> None:
        cached("HuggingFaceTB/SmolLM2-135M-Instruct")
        with pytest.raises(ModelNotFoundError, match="llmkit convert ORG/mistral --to gguf-q4") as caught:
            resolve("mistral")
        assert "Did you mean" not in str(caught.value)
        with pytest.raises(ModelNotFoundError, match=r"Did you mean HuggingFaceTB/SmolLM2-135M-Instruct\?"):
            resolve("smolml2")

    def test_an_unfinished_download_needs_the_network(self) -> None:
        index = cached("org/Tiny", ["config.json"]) / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "x-1.safetensors"}}))
        with pytest.raises(Exception, match=r"not complete \(x-1\.safetensors missing\), and HF_HUB_OFFLINE is set"):
            resolve("tiny")

    def test_match_prefers_names_then_parts_then_pieces(self) -> None:
        def named(*names: str) -> list[LocalModel]:
            return [LocalModel(n, "checkpoint", Path(n), 0, "here") for n in names]

        models = named("Llama", "Llama-3.2-1B", "TinyLlama-1.1B", "Mistral-7B")
        assert [m.name for m in match("llama", models)] == ["Llama"]
        assert [m.name for m in match("LLAMA", models[1:])] == ["Llama-3.2-1B"]
        assert [m.name for m in match("llama", models[2:])] == ["TinyLlama-1.1B"]
        assert [m.name for m in match("3.2", models)] == ["Llama-3.2-1B"]
        assert match("qwen", models) == []
        assert match("-", named("Mistral")) == []


class TestList:
    def test_here_and_cache(self, here: Path) -> None:
        checkpoint(here / "tiny")
        (here / "tiny" / "model.safetensors").write_bytes(b"x" * 100)
        for number in (1, 2):
            (here / f"big-{number:05d}-of-00002.gguf").write_bytes(b"x" * 10)
        touch(here / "sub" / "deeper", ["deep.gguf"])
        touch(here / "sub", ["sub.gguf"])
        cached("org/Tiny", ["config.json"])
        cached("org/Whole")
        (hubcache.cache_folder() / "datasets--org--data").mkdir()
        index = cached("org/Broken", ["config.json", "m-1.safetensors"]) / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
        assert [(m.name, m.kind, m.label, m.n_bytes, m.source, m.missing) for m in list_models()] == [
            ("big", "gguf", "big-00001-of-00002.gguf", 20, "here", ()),
            ("sub", "gguf", "sub/sub.gguf", 0, "here", ()),
            ("tiny", "checkpoint", "tiny", 100, "here", ()),
            ("Broken", "checkpoint", "org/Broken", 0, "cache", ("m-2.safetensors",)),
            ("Whole", "checkpoint", "org/Whole", 0, "cache", ()),
        ]

    def test_command(self, here: Path) -> None:
        touch(here, ["tiny-Q4_0.gguf"])
        cached("org/Whole")
        result = invoke("models")
        assert result.exit_code == 0
        assert result.stdout.splitlines() == [
            "name       kind        size  where  model",
            "tiny-Q4_0  gguf        0 B   here   tiny-Q4_0.gguf",
            "Whole      checkpoint  0 B   cache  org/Whole",
        ]
        listed = json.loads(invoke("models", "--json").stdout)
        assert listed[1] == {
            "name": "Whole",
            "kind": "checkpoint",
            "path": str(hubcache.repo_folder("org/Whole") / "snapshots" / COMMIT),
            "bytes": 0,
            "source": "cache",
            "repo": "org/Whole",
            "revision": COMMIT,
            "missing": [],
            "model": "org/Whole",
        }

    @pytest.mark.parametrize(("n_missing", "state"), [(1, "cache, 1 file missing"), (2, "cache, 2 files missing")])
    def test_command_counts_missing_files(self, n_missing: int, state: str) -> None:
        index = cached("org/Tiny", ["config.json"]) / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {str(n): f"x-{n}.safetensors" for n in range(n_missing)}}))
        assert f"  {state}  org/Tiny" in invoke("models").stdout

    def test_command_without_models(self) -> None:
        result = invoke("models")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "No models here" in result.stderr
        assert invoke("-q", "models").stderr == ""
        assert json.loads(invoke("models", "--json").stdout) == []


def test_contents_of_shards() -> None:
    pair = ["config.json", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    assert contents(pair).weights == tuple(pair[1:])
    assert not contents(pair[:2]).is_checkpoint
    assert contents(["config.json", "weights.safetensors", "adapter_model.safetensors"]).weights == (
        "weights.safetensors",
    )
    assert not contents(["config.json", "sub/model.safetensors"]).is_checkpoint


def test_a_home_folder_of_no_known_user_is_an_ordinary_name() -> None:
    assert user_path("~no-such-user/m.gguf") == Path("~no-such-user/m.gguf")
    assert user_path("~/m.gguf") == Path.home() / "m.gguf"
    with pytest.raises(ModelNotFoundError, match=r"~no-such-user/m\.gguf"):
        resolve("~no-such-user/m.gguf", download=False)


def test_gguf_models() -> None:
    names = ["b.GGUF", "mmproj.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "c.ggml"]
    names += ["imatrix.gguf", "b.imatrix.gguf"]
    assert gguf_models(names) == ("a-00001-of-00002.gguf", "b.GGUF")


def test_the_command_line_ends_with_one_message_and_a_status(here: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(here.parent / "home")}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from llmkit.cli import main; main()", *args]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=here)

    missing = run("inspect", "nothing-here")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("llmkit: Nothing on this machine is called 'nothing-here'")
    assert len(missing.stderr.splitlines()) == 1
    usage = run("models", "--nonsense")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "Traceback" not in usage.stderr
    assert run("inspect").returncode == 2
    assert run("models").returncode == 0
