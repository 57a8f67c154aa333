"""Lists of tokens in tiktoken's format: token for token, and damaged ones."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.convert.tokenizer.bytelevel import byte_alphabet
from llmkit.convert.tokenizer.splitting import KIMI
from llmkit.convert.tokenizer.tiktoken import CLASSES
from llmkit.errors import FormatError, UnsupportedError
from tests.convert import trained
from tests.convert.test_pretokenizers import has_marks_or_capitals
from tests.convert.trained import LLAMA3, QWEN2, byte_level, split, write_json
from tests.convert.vocabfile import LlamaVocabulary
from tests.corpus import plain_texts, texts_with

PATTERNS = {"QWenTokenizer": QWEN2, "HYTokenizer": QWEN2, "ChatGLM4Tokenizer": LLAMA3, "TikTokenTokenizer": KIMI}
NAMES = {"QWenTokenizer": "qwen.tiktoken", "HYTokenizer": "hy.tiktoken", "TikTokenTokenizer": "tiktoken.model"}
N = 2000
SPECIAL = {str(N): {"content": "<|user|>", "special": True}, str(N + 5): {"content": "[gMASK]", "special": True}}


def train(folder: Path, name: str) -> Tokenizer:
    """Write the list and tokenizer_config.json of a class; returns the tokenizer that they stand for."""
    hf = trained.train_byte_level(folder, byte_level(split(PATTERNS[name])), n_tokens=N, ignore_merges=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    lines = [
        b"%s %d" % (b64encode(bytes(map(byte_of.__getitem__, token))), id)
        for token, id in tokenizer["model"]["vocab"].items()
    ]
    (folder / NAMES.get(name, "tokenizer.model")).write_bytes(b"\n".join([*lines, b""]))
    config: dict[str, Any] = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
    tokenizer |= {"added_tokens": [], "post_processor": None}
    hf = Tokenizer.from_str(json.dumps(tokenizer))
    special = CLASSES[name].special
    if not special:
        config |= {"added_tokens_decoder": SPECIAL, "eos_token": "<|user|>"}
        special = ("<|user|>", *(f"hole {i}" for i in range(4)), "[gMASK]")
    hf.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    write_json(folder / "tokenizer_config.json", config)
    return hf


@pytest.mark.parametrize("name", CLASSES)
def test_tokens(name: str, tmp_path: Path) -> None:
    hf = train(tmp_path, name)
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size() + 9, {}, notes=notes)
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        texts = [*plain_texts(), *texts_with(["<|endoftext|>", "<|im_end|>"] if CLASSES[name].special else ["[gMASK]"])]
        different = [text for text in texts if vocabulary.encode(text, add_special=True) != hf.encode(text).ids]
        assert vocabulary.special()["eos"] == N
    if name == "TikTokenTokenizer":
        (note,) = notes
        assert "kimi-k2 is approximate" in note
        assert different
        assert not [text for text in different if not has_marks_or_capitals(text)]
    else:
        assert notes == []
        assert different == []


def test_classes_that_nobody_knows(tmp_path: Path) -> None:
    train(tmp_path, "QWenTokenizer")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UnsupportedError, match=r"qwen\.tiktoken: a list of tokens, .* the class None .*QWenTokenizer"):
        tokenizer_metadata(tmp_path, N, {})


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (b"IQ== 0\nIg== 2\n", "line 2 is b'Ig== 2', expected base64 and the rank 1"),
        (b"IQ== 0\nIg==\n", "line 2"),
        (b"IQ== 0\n*** 1\n", "line 2"),
        (b"IQ== 0\nIQ== 1\n", "two lines hold the same token"),
        (b"IQ== 0\n%s 1\n" % b64encode(b"x" * 5000), "holds a token of 5000 bytes"),
    ],
)
def test_damaged_lists(text: bytes, fragment: str, tmp_path: Path) -> None:
    (tmp_path / "tiktoken.model").write_bytes(text)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "QWenTokenizer"})
    with pytest.raises(FormatError) as caught:
        tokenizer_metadata(tmp_path, 10, {})
    assert fragment in str(caught.value)


def test_a_list_that_is_larger_than_the_embedding(tmp_path: Path) -> None:
    train(tmp_path, "HYTokenizer")
    with pytest.raises(UnsupportedError, match="has no row in the embedding"):
        tokenizer_metadata(tmp_path, N - 1, {})


def test_another_file_of_that_name_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not base64\n")
    with pytest.raises(FormatError, match="not a SentencePiece model"):
        tokenizer_metadata(tmp_path, 10, {})
