"""vocab.json and merges.txt: each class splits as transformers' class does, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.convert.tokenizer.stages import stages_of
from llmkit.convert.tokenizer.vocabmerges import CLASSES
from llmkit.errors import UnsupportedError
from tests.convert import trained
from tests.convert.published import GPT2_STEP, QWEN35, digits, sequence
from tests.convert.trained import QWEN2, byte_level, split, write_json
from tests.convert.vocabfile import LlamaVocabulary
from tests.corpus import plain_texts, texts_with

PRE_TOKENIZERS: dict[str, Any] = {
    "GPT2Tokenizer": GPT2_STEP,
    "CodeGenTokenizer": GPT2_STEP,
    "GPTNeoXTokenizer": GPT2_STEP,
    "Qwen2Tokenizer": byte_level(split(QWEN2)),
    "Qwen3_5Tokenizer": byte_level(split(QWEN35)),
    "CohereTokenizer": sequence(digits(individual=True), GPT2_STEP),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_classes_split_as_transformers_has_it(name: str) -> None:
    import transformers

    theirs = json.loads(getattr(transformers, name)().backend_tokenizer.to_str())
    ours = CLASSES[name]
    assert stages_of(theirs["pre_tokenizer"]) == ours.stages
    assert (theirs["normalizer"] is not None) == ours.normalizes


def train(folder: Path, name: str) -> Tokenizer:
    """A vocabulary of the class with <|endoftext|> as its last token, as GPT-2 has it."""
    trained.train_byte_level(folder, PRE_TOKENIZERS[name], n_tokens=3000, template=False)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end = dict(CLASSES[name].special)["eos_token"]
    vocab = tokenizer["model"]["vocab"] | {end: 3000}
    write_json(folder / "vocab.json", vocab)
    merges = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    added = [{**tokenizer["added_tokens"][0], "id": 3000, "content": end}]
    tokenizer |= {"added_tokens": added, "post_processor": None}
    tokenizer["model"]["vocab"] = vocab
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    return Tokenizer.from_str(json.dumps(tokenizer))


@pytest.mark.parametrize("name", CLASSES)
def test_tokens(name: str, tmp_path: Path) -> None:
    hf = train(tmp_path, name)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": name})
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, 3001, {}, notes=notes)
    assert [note.partition("(")[0] for note in notes] == ["the tokenizer normalises text "] * CLASSES[name].normalizes
    end = dict(CLASSES[name].special)["eos_token"]
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        for text in [*plain_texts(), *texts_with([end])]:
            assert vocabulary.encode(text, add_special=True) == hf.encode(text).ids, text
        assert vocabulary.special()["eos"] == 3000
        assert vocabulary.ends_generation(3000)


def test_the_class_by_the_type_of_the_model(tmp_path: Path) -> None:
    train(tmp_path, "Qwen2Tokenizer")
    assert tokenizer_metadata(tmp_path, 3001, {"model_type": "qwen3"})["tokenizer.ggml.pre"].data == "qwen2"
    with pytest.raises(UnsupportedError, match="class None"):
        tokenizer_metadata(tmp_path, 3001, {"model_type": "clvp"})


def test_a_space_before_the_text_is_refused(tmp_path: Path) -> None:
    train(tmp_path, "GPT2Tokenizer")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True})
    with pytest.raises(UnsupportedError, match="add_prefix_space"):
        tokenizer_metadata(tmp_path, 3001, {})
