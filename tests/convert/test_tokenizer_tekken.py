"""tekken.json: tokens against merging by rank written out plainly, and broken files."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.convert.tokenizer.bytelevel import byte_alphabet
from llmkit.errors import FormatError, LlmkitError, UnsupportedError
from llmkit.formats.gguf import plan_layout
from tests.convert import trained
from tests.convert.test_pretokenizers import has_marks_or_case
from tests.convert.trained import TEKKEN, byte_level, split, write_json
from tests.convert.vocabfile import LlamaVocabulary
from tests.corpus import plain_texts, texts_with

N_SPECIAL = 30


def tekken_of(hf: Tokenizer) -> dict[str, Any]:
    """The trained tokens of `hf` as tekken.json has them: the bytes in order, then by age."""
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    vocab = hf.get_vocab(with_added_tokens=False)
    words = [bytes(byte_of[character] for character in text) for text in sorted(vocab, key=vocab.__getitem__)]
    words = [*(bytes([byte]) for byte in range(256)), *(word for word in words if len(word) > 1)]
    config = {"pattern": TEKKEN, "default_num_special_tokens": N_SPECIAL, "version": "v11"}
    return {
        "config": {**config, "default_vocab_size": N_SPECIAL + len(words)},
        "vocab": [{"rank": rank, "token_bytes": b64encode(word).decode()} for rank, word in enumerate(words)],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": text != "<tool>"}
            for rank, text in enumerate(["<unk>", "<s>", "</s>", "[INST]", "<tool>"])
        ],
    }


def merged_by_rank(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """What tiktoken does: join the neighbours whose joint bytes have the lowest rank until none have one."""
    if word in ranks:
        return [ranks[word]]
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        joint = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        at = joint.index(min(joint))
        if joint[at] == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]


def test_the_alphabet_is_that_of_tokenizers() -> None:
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é\n ~")[0][0]
    assert shown == "".join(byte_alphabet()[byte] for byte in "é\n ~".encode())


def test_tokens(tmp_path: Path) -> None:
    hf = trained.train_byte_level(tmp_path / "hf", byte_level(split(TEKKEN)), ignore_merges=True)
    tekken = tekken_of(hf)
    write_json(tmp_path / "tekken.json", tekken)
    ranks = {word: rank for rank, word in enumerate(words_of(tekken))}
    n_vocab = N_SPECIAL + len(ranks)
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, n_vocab, {}, notes=notes)
    assert [note[:50] for note in notes] == ["llama.cpp's pre-tokenizer tekken is approximate: t"]

    def expected(text: str) -> list[int]:
        pieces = split(TEKKEN).pre_tokenize_str(text)
        return [N_SPECIAL + id for piece, _ in pieces for id in merged_by_rank(piece.encode(), ranks)]

    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert vocabulary.n_tokens == n_vocab
        texts = plain_texts()
        different = [text for text in texts if vocabulary.encode(text, parse_special=False) != expected(text)]
        assert len(different) < len(texts) / 4
        assert not [text for text in different if not has_marks_or_case(text)]
        assert vocabulary.adds_bos()
        assert not vocabulary.adds_eos()
        assert (vocabulary.special()["bos"], vocabulary.special()["eos"]) == (1, 2)
        for text in texts_with(["[INST]", "<tool>", "<SPECIAL_29>"]):
            assert vocabulary.decode(vocabulary.encode(text)).decode() == text
        assert vocabulary.encode("[INST]<tool><SPECIAL_29>") == [3, 4, 29]
        assert vocabulary.encode("<tool>", parse_special=False) == [4]  # not a control token


def words_of(tekken: dict[str, Any]) -> list[bytes]:
    return [b64decode(entry["token_bytes"]) for entry in tekken["vocab"]]


def small() -> dict[str, Any]:
    words = [*(bytes([byte]) for byte in range(256)), b"ab", b"abc"]
    return {
        "config": {"pattern": TEKKEN, "default_num_special_tokens": 20, "default_vocab_size": 278, "version": "v3"},
        "vocab": [{"rank": rank, "token_bytes": b64encode(word).decode()} for rank, word in enumerate(words)],
    }


def test_files_without_special_tokens(tmp_path: Path) -> None:
    """Files up to version 7 leave them to the program."""
    write_json(tmp_path / "tekken.json", small())
    found = tokenizer_metadata(tmp_path, 280, {})
    texts = found["tokenizer.ggml.tokens"].data
    assert texts[:5] == ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
    assert texts[19:23] == ("[TOOL_CONTENT]", "Ā", "ā", "Ă")
    assert texts[276:] == ("ab", "abc", "[PAD278]", "[PAD279]")
    assert found["tokenizer.ggml.merges"].data == ("a b", "ab c")
    assert found["tokenizer.ggml.padding_token_id"].data == 11


@pytest.mark.parametrize(
    ("place", "value", "kind", "fragment"),
    [
        (["config"], [], FormatError, "config: expected an object, found an array"),
        (["config", "pattern"], None, FormatError, "config.pattern: expected a string, found null"),
        (["config", "pattern"], "x", UnsupportedError, "splits by x; llmkit recognises"),
        (["config", "default_vocab_size"], 279, FormatError, "vocab has 258 entries, config asks for 259"),
        (["config", "default_vocab_size"], 100, FormatError, "config asks for 80"),
        (["config", "default_vocab_size"], 10**12, FormatError, "is not a number of tokens"),
        (["config", "default_num_special_tokens"], True, FormatError, "True is not a number of tokens"),
        (["vocab"], {}, FormatError, "vocab: expected an array, found an object"),
        (["vocab", 3], None, FormatError, "entry 3 is None"),
        (["vocab", 3, "rank"], 4, FormatError, "expected rank 3"),
        (["vocab", 3, "token_bytes"], "!", FormatError, "entry 3: token_bytes is not base64"),
        (["vocab", 3, "token_bytes"], "BB==", FormatError, "entry 3"),
        (["vocab", 256, "token_bytes"], "", FormatError, "entry 256 holds b''"),
        (["vocab", 257, "token_bytes"], b64encode(b"ab").decode(), FormatError, "two entries hold the same bytes"),
        (["special_tokens"], 7, FormatError, "special_tokens: expected an array"),
        (["special_tokens"], [{"rank": 1, "token_str": "x"}], FormatError, "expected rank 0"),
        (["special_tokens"], 21 * [{}], FormatError, "at most 20 tokens"),
    ],
)
def test_broken_files(place: list[Any], value: Any, kind: type[LlmkitError], fragment: str, tmp_path: Path) -> None:
    broken: Any = small()
    part = broken
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    write_json(tmp_path / "tekken.json", broken)
    with pytest.raises(kind) as caught:
        tokenizer_metadata(tmp_path, 300, {})
    assert str(tmp_path / "tekken.json") in str(caught.value)
    assert fragment in str(caught.value)


def test_embedding_too_small(tmp_path: Path) -> None:
    write_json(tmp_path / "tekken.json", small())
    with pytest.raises(UnsupportedError, match="has 277"):
        tokenizer_metadata(tmp_path, 277, {})


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just([]) | st.just({})


@settings(max_examples=200)
@given(key=st.sampled_from(["config", "vocab", "special_tokens"]), at=st.integers(0, 40), value=SCALARS)
def test_damaged_files(key: str, at: int, value: Any, tmp_path: Path) -> None:
    damaged = deepcopy(small())
    damaged["special_tokens"] = [{"rank": 0, "token_str": "<unk>", "is_control": True}]
    part = damaged[key]
    names = list(part) if isinstance(part, dict) else list(range(len(part)))
    part[names[at % len(names)]] = value
    if isinstance(part, list) and at % 3 and isinstance(small().get(key), list):
        part[0] = {"rank": 0, "token_bytes": value}
    (tmp_path / "tekken.json").write_text(json.dumps(damaged))
    try:
        plan_layout(tokenizer_metadata(tmp_path, 300, {}), [])
    except LlmkitError:
        return
