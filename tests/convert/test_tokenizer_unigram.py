"""Unigram: llama.cpp on our metadata against `sentencepiece` and Hugging Face's `tokenizers`."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, normalizers, pre_tokenizers

from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.convert.tokenizer.sentencepiece import parse_sentencepiece
from llmkit.errors import FormatError, UnsupportedError
from tests.convert.trained import UNIGRAM_SPECIAL, train_unigram, unigram_model, write_json
from tests.convert.vocabfile import LlamaVocabulary
from tests.corpus import plain_texts, random_texts, texts_with
from tests.tokenizer_differences import unigram_differs

TEXTS = [*plain_texts(), *random_texts(500, seed=1)]
MODEL = parse_sentencepiece(memoryview(unigram_model()))
CHARSMAP = normalizers.Precompiled(MODEL.charsmap)
METASPACE = pre_tokenizers.Metaspace(prepend_scheme="always")

# How the tokenizer.json of XLM-RoBERTa and its descendants joins spaces, by the age of the converter that wrote it.
TREATMENTS = {
    "split at spaces": (CHARSMAP, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), METASPACE])),
    "repeated spaces replaced": (normalizers.Sequence([CHARSMAP, normalizers.Replace(Regex(" {2,}"), " ")]), METASPACE),
    "and stripped": (
        normalizers.Sequence(
            [CHARSMAP, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
        ),
        METASPACE,
    ),
}


def sentencepiece_ids(text: str) -> list[int]:
    """The tokens of SentencePiece with the ids of fairseq, between <s> and </s>."""
    processor = SentencePieceProcessor(model_proto=unigram_model())
    return [0, *(3 if id == 0 else id + 1 for id in processor.encode(text)), 2]


def ends_in_space(text: str) -> bool:
    """Whether the text, or a part of it before a special token, ends in a space once it is normalised."""
    parts = re.split("|".join(UNIGRAM_SPECIAL), text)
    return any(CHARSMAP.normalize_str(part)[-1:] == " " for part in parts)


@pytest.mark.parametrize("name", TREATMENTS)
def test_tokenizer_json(name: str, tmp_path: Path) -> None:
    normalizer, pre_tokenizer = TREATMENTS[name]
    hf = train_unigram(tmp_path, normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size(), {}, notes=notes)
    keeps_last_space = any("a space at the end" in note for note in notes)
    assert keeps_last_space == (name == "repeated spaces replaced")
    texts = [*TEXTS, *texts_with(list(UNIGRAM_SPECIAL))]
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        different = [text for text in texts if vocabulary.encode(text, add_special=True) != hf.encode(text).ids]
        if keeps_last_space:
            different = [text for text in different if not ends_in_space(text)]
        assert [text for text in different if not unigram_differs(text)] == []
        # Where the two differ, llama.cpp does what SentencePiece does.
        plain = [text for text in different if not any(token in text for token in UNIGRAM_SPECIAL)]
        others = [text for text in plain if vocabulary.encode(text, add_special=True) != sentencepiece_ids(text)]
        assert len(others) <= len(plain) / 20
        assert plain


def test_sentencepiece_of_fairseq(tmp_path: Path) -> None:
    """XLM-RoBERTa's own file, without tokenizer.json: four tokens before the pieces, the mask behind them."""
    (tmp_path / "sentencepiece.bpe.model").write_bytes(unigram_model())
    metadata = tokenizer_metadata(tmp_path, len(MODEL.pieces) + 2, {"model_type": "xlm-roberta"})
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert vocabulary.adds_bos()
        assert vocabulary.adds_eos()
        different = [
            text
            for text in TEXTS
            if vocabulary.encode(text, add_special=True, parse_special=False) != sentencepiece_ids(text)
        ]
        # Splits of equal probability; SentencePiece sums float32, llama.cpp float64.
        assert len(different) <= 2
        assert vocabulary.encode("<mask>") == [len(MODEL.pieces) + 1]
        assert [vocabulary.piece(id) for id in range(4)] == [b"<s>", b"<pad>", b"</s>", b"<unk>"]


def test_both_files_say_the_same(tmp_path: Path) -> None:
    hf = train_unigram(tmp_path / "json")
    (tmp_path / "spm").mkdir()
    (tmp_path / "spm" / "sentencepiece.bpe.model").write_bytes(unigram_model())
    found = tokenizer_metadata(tmp_path / "spm", hf.get_vocab_size(), {})
    expected = tokenizer_metadata(tmp_path / "json", hf.get_vocab_size(), {})
    expected.pop("tokenizer.ggml.add_sep_token")  # tokenizer.json's template for pairs says it, nothing here
    assert found == expected


def test_sentencepiece_of_other_names(tmp_path: Path) -> None:
    """tokenizer.model has SentencePiece's own ids."""
    (tmp_path / "tokenizer.model").write_bytes(unigram_model())
    metadata = tokenizer_metadata(tmp_path, len(MODEL.pieces), {})
    processor = SentencePieceProcessor(model_proto=unigram_model())
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        for text in TEXTS[:40]:
            assert vocabulary.encode(text, parse_special=False) == processor.encode(text)


@pytest.mark.parametrize(
    ("parts", "kind", "fragments"),
    [
        ({"model": {"unk_id": 99999}}, FormatError, ["unk_id", "99999"]),
        ({"model": {"unk_id": None}}, FormatError, ["unk_id"]),
        ({"model": {"vocab": [["a", "b"]]}}, FormatError, ["entry 0", "[text, score]"]),
        ({"model": {"vocab": [["a", True]]}}, FormatError, ["entry 0"]),
        ({"model": {"vocab": [["a", 10**400]]}}, FormatError, ["entry 0"]),
        ({"model": {"vocab": {}}}, FormatError, ["expected an array"]),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, FormatError, ["no base64"]),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": b64encode(b"\xff" * 40).decode()}},
            FormatError,
            ["no rules of SentencePiece"],
        ),
        ({"normalizer": {"type": "Lowercase"}}, UnsupportedError, ["Lowercase"]),
        ({"pre_tokenizer": {"type": "Whitespace"}}, UnsupportedError, ["pre_tokenizer", "Whitespace"]),
        ({"pre_tokenizer": None}, UnsupportedError, ["no Metaspace step"]),
    ],
)
def test_broken_or_unknown(parts: dict[str, Any], kind: type[Exception], fragments: list[str], tmp_path: Path) -> None:
    hf = train_unigram(tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    for key, value in parts.items():
        found[key] = {**found[key], **value} if key == "model" else value
    write_json(tmp_path / "tokenizer.json", found)
    with pytest.raises(kind) as caught:
        tokenizer_metadata(tmp_path, hf.get_vocab_size(), {})
    assert all(fragment in str(caught.value) for fragment in fragments)


def test_no_space_in_front_of_joined_spaces(tmp_path: Path) -> None:
    steps = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    hf = train_unigram(tmp_path, pre_tokenizer=steps)
    with pytest.raises(UnsupportedError, match="no space is put before a text"):
        tokenizer_metadata(tmp_path, hf.get_vocab_size(), {})
