"""tokenizer.json from metadata, where spaces are `▁`: what llama.cpp assumes, and what it knows by names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.restore.tokenizer import tokenizer_documents
from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.errors import UnsupportedError
from llmkit.formats.gguf import Value, ValueType, array, string
from tests.convert.test_tokenizer_gemma import OPTIONS, gemma
from tests.convert.trained import train_sentencepiece, write_json
from tests.corpus import plain_texts, texts_with


def documents(metadata: dict[str, Value]) -> dict[str, Any]:
    return tokenizer_documents(GGUFSource((Path("m.gguf"),), metadata, (), 32), 512)


def restored(metadata: dict[str, Value]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(documents(metadata)["tokenizer.json"]))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_ranked_pairs_come_back(adds_bos: bool, tmp_path: Path) -> None:
    spm = train_sentencepiece(tmp_path, **OPTIONS)
    (tmp_path / "tokenizer.model").unlink()
    hf = gemma(spm, adds_bos=adds_bos)
    hf.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<bos>", "eos_token": "<eos>"})
    metadata = tokenizer_metadata(tmp_path, spm.vocab_size() + 3, {})
    assert metadata["tokenizer.ggml.model"].data == "gemma4"
    back = restored(metadata)
    texts = (*plain_texts(), *texts_with(["<bos>", "<eos>", "<table>"]), " " * 40 + "x" + "\n" * 40)
    for text in (text for text in texts if "▁" not in text):  # which files cannot tell from a space
        expected = hf.encode(text, add_special_tokens=False).ids
        # llama.cpp begins with BOS in any case.
        assert back.encode(text).ids == [2, *expected], text
        assert back.encode(text, add_special_tokens=False).ids == expected, text


def test_what_a_file_leaves_out_is_what_llama_cpp_assumes(tmp_path: Path) -> None:
    train_sentencepiece(tmp_path)
    metadata = tokenizer_metadata(tmp_path, 1200, {})
    whole = restored(metadata)
    left_out = ("bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token", "add_space_prefix")
    sparse = {key: value for key, value in metadata.items() if key.removeprefix("tokenizer.ggml.") not in left_out}
    assert len(sparse) < len(metadata)
    back = restored(sparse)
    assert whole.encode("so it is \U00013000").ids[0] == 1
    for text in plain_texts():
        assert back.encode(text).ids == whole.encode(text).ids
    config = documents(sparse)["tokenizer_config.json"]
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")


@pytest.mark.parametrize(("name", "strips"), [("Phi-3.5 Mini", True), ("phi3", True), ("Llama 2", False)])
def test_special_tokens_that_swallow_spaces_are_known_by_the_name(name: str, strips: bool, tmp_path: Path) -> None:
    spm = train_sentencepiece(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"<|end|>": 1200, "<|endoftext|>": 1201})
    back = restored({**tokenizer_metadata(tmp_path, 1202, {}), "general.name": string(name)})
    rest = spm.encode("x")
    spaces = back.encode("  x", add_special_tokens=False).ids
    assert back.encode("<|end|>  x", add_special_tokens=False).ids == [1200, *(rest if strips else spaces)]
    assert back.encode("<|endoftext|>  x", add_special_tokens=False).ids == [1201, *spaces]


def test_other_kinds_are_refused() -> None:
    tokens = array(ValueType.STRING, ("a",))
    with pytest.raises(UnsupportedError, match="kind 'rwkv'"):
        documents({"tokenizer.ggml.model": string("rwkv"), "tokenizer.ggml.tokens": tokens})
