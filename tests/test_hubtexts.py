"""Texts of datasets, through the real huggingface_hub and Arrow from a small server on this machine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from llmkit import hubcache
from llmkit.cli import run
from llmkit.errors import FormatError, HubError, ModelNotFoundError
from llmkit.hubtexts import fetch_text
from tests.fakehub import FakeHub, FakeRepo
from tests.runtimes import tiny_gguf
from tests.test_hub import fake as fake  # a running hub, taken for the real one
from tests.test_hub import go_offline

WIKI = [" = Robert =\n", "", " He was born in 1955 , in a <unk> .\n", ""]


def table(texts: list[str | None], column: str = "text", **more: list[object]) -> bytes:
    output = io.BytesIO()
    parquet.write_table(pa.table({column: texts, **more}), output, row_group_size=3)
    return output.getvalue()


@pytest.fixture
def hub(fake: FakeHub) -> Iterator[FakeHub]:
    fake.repos["datasets/Salesforce/wikitext"] = FakeRepo(
        {
            "README.md": b"# WikiText",
            "wikitext-2-raw-v1/test-00000-of-00001.parquet": table(list(WIKI)),
            "wikitext-2-raw-v1/train-00000-of-00001.parquet": table(["never fetched"]),
            "wikitext-103-raw-v1/test-00000-of-00001.parquet": table([" 103\n"]),
        }
    )
    fake.repos["datasets/org/plain"] = FakeRepo(
        {
            "data/train-00001-of-00002.parquet": table(["third", None]),
            "data/train-00000-of-00002.parquet": table(["first", "second"], id=[1, 2]),
            "data/validation-00000-of-00001-0123abcd.parquet": table(["check"], "content", id=[7]),
        }
    )
    fake.repos["datasets/org/converted"] = FakeRepo(
        {"data.jsonl": b"{}", "default/partial-train/0000.parquet": table(["from jsonl"])},
        revisions={"refs/convert/parquet": "d" * 40},
    )
    return fake


def test_wikitext_is_the_text_that_everybody_uses(hub: FakeHub) -> None:
    """Lines as they are, with the blank of an empty one, which the dataset lacks."""
    found = fetch_text("wikitext")
    assert found.name == "Salesforce/wikitext/wikitext-2-raw-v1/test"
    assert found.text == " = Robert =\n \n He was born in 1955 , in a <unk> .\n \n"
    assert fetch_text("wikitext-103").text == " 103\n"
    assert fetch_text("Salesforce/wikitext/wikitext-2-raw-v1/train").text == "never fetched"


def test_only_what_is_read_is_fetched_and_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_text("wikitext")
    assert set(hub.fetched()) == {"wikitext-2-raw-v1/test-00000-of-00001.parquet"}
    n_requests = len([request for request in hub.requests if request.method == "GET" and "resolve" in request.path])
    fetch_text("wikitext")
    assert n_requests == len([r for r in hub.requests if r.method == "GET" and "resolve" in r.path])
    hub.fail_api = 503
    assert fetch_text("wikitext").text.startswith(" = Robert")  # from the cache
    go_offline(monkeypatch)
    assert fetch_text("wikitext").text.startswith(" = Robert")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        fetch_text("org/plain")


def test_the_cache_serves_whole_splits_only(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a file missing the text would be another one, under the same name."""
    fetch_text("org/plain/data/train")
    folder = hubcache.repo_folder("org/plain", "dataset") / "snapshots" / ("c" * 40) / "data"
    go_offline(monkeypatch)
    assert fetch_text("org/plain/data/train").text.startswith("first")
    (folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(HubError, match="not in the cache"):
        fetch_text("org/plain/data/train")
    with pytest.raises(HubError, match="not in the cache"):
        fetch_text("org/plain/data/validation")


def test_other_layouts(hub: FakeHub) -> None:
    assert fetch_text("org/plain/data/train").text == "first\n\nsecond\n\nthird"  # files in their order
    found = fetch_text("org/plain")  # there is no split called test
    assert (found.name, found.text) == ("org/plain/validation", "check")


def test_a_long_dataset_is_cut(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.hubtexts._ENOUGH", 8)
    assert fetch_text("org/plain/data/train").text == "first\n\ns"
    assert hub.fetched() == ["data/train-00000-of-00002.parquet"]


def test_what_the_hub_converted(hub: FakeHub) -> None:
    repo = hub.repos["datasets/org/converted"]
    found = dict(repo.files)
    repo.files = {"data.jsonl": b"{}"}
    with pytest.raises(ModelNotFoundError, match="no Parquet files"):
        fetch_text("org/converted")
    repo.files = found  # the small server has one set of files for all revisions
    assert fetch_text("org/converted").text == "from jsonl"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "org/name"),
        ("a/b/c/d/e", "org/name"),
        ("../x", "org/name"),
        ("org/absent", "The hub has no dataset org/absent"),
        ("Salesforce/wikitext", "several configurations.*wikitext-103-raw-v1"),
        ("Salesforce/wikitext/x", "no configuration 'x'"),
        ("Salesforce/wikitext/wikitext-2-raw-v1/dev", "no split 'dev', but test, train"),
    ],
)
def test_names_that_lead_nowhere(hub: FakeHub, name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        fetch_text(name)


def test_files_that_hold_no_texts(hub: FakeHub) -> None:
    repo = hub.repos["datasets/org/plain"]
    for commit, content, message in (
        ("1", b"PAR1 but damaged", "no Parquet file"),
        ("2", table(["a"], "one", two=["b"]), "no column 'text' of texts; its columns: one, two"),
        ("3", table(["a"])[:-30], "no Parquet file"),
    ):
        repo.commit = commit * 40
        repo.files["data/test-00000-of-00001.parquet"] = content
        with pytest.raises(FormatError, match=message):
            fetch_text("org/plain/data/test")


def test_evaluating_on_a_dataset(hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_gguf.write_llama(tmp_path / "m.gguf")
    hub.repos["datasets/org/plain"].files["data/test-00000-of-00001.parquet"] = table(["a text of many words "] * 40)
    arguments = ["-q", "eval", str(model), "-c", "16", "--chunks", "2", "--threads", "1", "--dataset", "org/plain"]
    assert run(arguments) == 0
    assert "2 windows of 16 tokens of org/plain/test" in capsys.readouterr().out
    assert run([*arguments, "--text", str(model)]) == 1
    assert "both a text and a dataset" in capsys.readouterr().err


def test_the_cache_is_where_the_library_has_it(hub: FakeHub) -> None:
    fetch_text("wikitext")
    folder = hubcache.repo_folder("Salesforce/wikitext", "dataset")
    assert folder.name == "datasets--Salesforce--wikitext"
    assert (folder / "refs" / "main").read_text() == "c" * 40
