"""general.* metadata: names against gguf-py's reading of them, cards whole and broken."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.metadata import Metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.convert.frontmatter import FrontMatterError, read_front_matter
from llmkit.convert.modelcard import general_metadata
from llmkit.convert.modelname import parse_model_name, size_label, title
from llmkit.errors import LlmkitError
from llmkit.formats.gguf import plan_layout

NAMES = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-2-7b-chat-hf",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "bigscience/bloom-7b1",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "01-ai/Yi-1.5-34B-Chat-16K",
    "someone/Llama-3-8B-Gradient-1048k",
    "a model with a name in words",
    "./checkpoint-500",
    "smol",
    "v1.0",
    "--",
)
PARTS = (
    "Llama 7B v2 8x7B instruct chat 3.1 128k large a q4_k_m fp16 A B 0.5b 1_5B lora XL hf 2T iter3 K 7b1 ü small A3B"
)


def names() -> list[str]:
    rng = random.Random(0)
    made = ["-".join(rng.choices(PARTS.split(), k=rng.randint(1, 6))) for _ in range(3000)]
    return [*NAMES, *made, *(f"org/{name}" for name in made[:300])]


@pytest.mark.parametrize("n_params", [135_000_000, 7_240_000_000, 8])
def test_names_are_read_as_gguf_py_reads_them(n_params: int) -> None:
    for name in names():
        found = parse_model_name(name, n_params)
        parts = (found.name, found.organization, found.basename, found.finetune, found.version, found.size_label)
        assert parts == Metadata.get_model_id_components(name, n_params), name
        assert title(name) == Metadata.id_to_title(name)


@pytest.mark.parametrize(
    "n_params", [1, 999, 1001, 12_345, 999_999, 134_515_008, 1_080_000_000, 13_000_000_000, 2 * 10**12]
)
def test_size_labels(n_params: int) -> None:
    assert size_label(n_params) == gguf.size_label(n_params, 0, 0, 0)
    assert size_label(n_params, 64) == gguf.size_label(0, 1, n_params - 1, 64)


def plain(folder: Path, config: Any = None, model_id: str | None = None, n_params: int = 134_515_008) -> dict[str, Any]:
    notes: list[str] = []
    found = general_metadata(folder, config or {}, n_params, model_id, notes=notes)
    plan_layout(found, [])
    return {key.removeprefix("general."): value.data for key, value in found.items()} | {"notes": notes}


def test_smollm2(smollm2_checkpoint: Path) -> None:
    """The same as gguf-py makes of the folder."""
    config = json.loads((smollm2_checkpoint / "config.json").read_text())
    found = plain(smollm2_checkpoint, config)
    theirs = Metadata.load(model_path=smollm2_checkpoint, total_params=134_515_008)
    assert found.pop("notes") == []
    assert found.pop("type") == "model"
    for key in ("name", "organization", "finetune", "basename", "size_label", "license"):
        assert found.pop(key, None) == getattr(theirs, key), key
    for key in ("tags", "languages"):
        assert list(found.pop(key)) == getattr(theirs, key), key
    assert found == {}


CARD = """---
license: [apache-2.0, mit]
license_name: two
language:
- en
- no
tags: [chat, code]
pipeline_tag: text-generation
version: 1.0
model_creator: Someone
base_model:
- meta-llama/Llama-3.2-1B-v2
- https://huggingface.co/org/Other-7B
- https://example.org/x
- name: Written out
  organization: Us
datasets: HuggingFaceTB/smoltalk
unused: {a: [b]}
---
# A model

---
not: part of it
"""


def test_a_whole_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 20, "top_p": null, "repetition_penalty": 1, "min_p": "x"}'
    )
    found = plain(tmp_path, {"_name_or_path": "/data/runs/tmp"}, "someone/Great-Model-1B-Chat-v3", 10**9)
    assert found == {
        "type": "model",
        "name": "Great Model 1B Chat v3",
        "author": "Someone",
        "version": "1.0",
        "organization": "Someone",
        "basename": "Great-Model",
        "finetune": "Chat",
        "size_label": "1B",
        "license": "apache-2.0,mit",
        "license.name": "two",
        "languages": ("en", "no"),
        "tags": ("chat", "code", "text-generation"),
        "sampling.temp": pytest.approx(0.6),
        "sampling.top_k": 20,
        "sampling.penalty_repeat": 1.0,
        "base_model.count": 4,
        "base_model.0.name": "Llama 3.2 1B v2",
        "base_model.0.organization": "Meta Llama",
        "base_model.0.version": "v2",
        "base_model.0.repo_url": "https://huggingface.co/meta-llama/Llama-3.2-1B-v2",
        "base_model.1.name": "Other 7B",
        "base_model.1.organization": "Org",
        "base_model.1.repo_url": "https://huggingface.co/org/Other-7B",
        "base_model.2.repo_url": "https://example.org/x",
        "base_model.3.name": "Written out",
        "base_model.3.organization": "Us",
        "dataset.count": 1,
        "dataset.0.name": "Smoltalk",
        "dataset.0.organization": "HuggingFaceTB",
        "dataset.0.repo_url": "https://huggingface.co/HuggingFaceTB/smoltalk",
        "notes": [],
    }


def test_names_come_from_the_id_then_the_config_then_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--Cached-2B" / "snapshots" / ("0123456789" * 4)
    folder.mkdir(parents=True)
    assert plain(folder)["name"] == "Cached 2B"
    assert plain(folder, {"_name_or_path": "other/Named-3B"})["name"] == "Named 3B"
    assert plain(folder, {"_name_or_path": "/some/path/of/theirs"})["name"] == "Cached 2B"
    assert plain(folder, {"_name_or_path": "other/Named-3B"}, "id/Given-4B")["name"] == "Given 4B"
    local = tmp_path / "my model"
    local.mkdir()
    assert plain(local)["name"] == "My Model"
    assert plain(local, {"_name_or_path": "\ud800"})["name"] == "?"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (b"---\nlicense: [a\n---\n", "not valid YAML"),
        (b"---\na: b: c\n---\n", "not valid YAML"),
        (b"---\n- a\n---\n", "not a YAML mapping"),
        # Recent versions of the YAML library have a limit of their own, which they reach first.
        (b"---\na: " + b"[" * 200_000 + b"\n---\n", "nest"),
        (b"---\n" + b"{a: " * 50_000 + b"\n---\n", "nested more than 32 deep"),
        (b"---\nlicense: \xff\n---\n", "not valid UTF-8"),
        (b"---\n" + b"#" * (5 << 20), "expected at most"),
        (b"---\nname: !!python/object/apply:os.system [x]\na: *nowhere\n---\n", None),
        (b"", None),
        (b"# no front matter\n", None),
        (b"---\n", None),
        (b"---\nlicense: ~\nname:\ntags: null\n---\n", None),
        (b"---\na: &a [x, x]\nb: &b [*a, *a]\nname: *b\n---\n", None),
    ],
)
def test_broken_cards_only_leave_fields_out(text: bytes, fragment: str | None, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(text)
    found = plain(tmp_path, model_id="org/Name-7B", n_params=7_000_000_000)
    expected = {"type": "model", "organization": "Org", "basename": "Name", "size_label": "7B"}
    expected["name"] = "x" if b"apply" in text else "Name 7B"
    assert {key: value for key, value in found.items() if key != "notes"} == expected
    if fragment is None:
        assert found["notes"] == []
        read_front_matter(path)
    else:
        (note,) = found["notes"]
        assert note.startswith(f"the model card is not used: {path}: ")
        assert fragment in note
        with pytest.raises(FrontMatterError):
            read_front_matter(path)


@settings(max_examples=300)
@given(
    front=st.text(alphabet="abn: -[]{}'\"&*!|>#,\n\t~?%@`\\é\U0001f600", max_size=80)
    | st.dictionaries(
        st.sampled_from(["name", "license", "base_model", "datasets", "tags", "language", "version"]),
        st.recursive(st.text(max_size=4), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner)),
    ).map(json.dumps)
)
def test_any_card(front: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n", encoding="utf-8", errors="replace", newline="")
    try:
        plain(tmp_path)
    except LlmkitError as error:
        pytest.fail(f"a card must not stop a conversion: {error}")
