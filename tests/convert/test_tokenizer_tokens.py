"""Token for token: llama.cpp on our metadata against Hugging Face's `tokenizers` and `sentencepiece`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, processors

from llmkit.convert.tokenizer import tokenizer_metadata
from tests.convert import trained
from tests.convert.trained import byte_level, split
from tests.convert.vocabfile import LlamaVocabulary
from tests.corpus import plain_texts, random_texts, texts_with

Encode = Callable[[str], list[int]]


def differences(texts: Sequence[str], ours: Encode, theirs: Encode) -> list[str]:
    return [text for text in texts if ours(text) != theirs(text)]


def convert(folder: Path, n_vocab: int, config: dict[str, Any] | None = None) -> tuple[LlamaVocabulary, list[str]]:
    notes: list[str] = []
    metadata = tokenizer_metadata(folder, n_vocab, config or {}, notes=notes)
    return LlamaVocabulary(metadata, folder / "vocabulary.gguf"), notes


def test_smollm2(smollm2_checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((smollm2_checkpoint / "config.json").read_text())
    metadata = tokenizer_metadata(smollm2_checkpoint, config["vocab_size"], config)
    hf = Tokenizer.from_file(str(smollm2_checkpoint / "tokenizer.json"))
    special = [str(hf.id_to_token(id)) for id in (0, 1, 2, 5)]
    texts = [*plain_texts(), *texts_with(special), *random_texts(1000, seed=1)]
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert not differences(texts, vocabulary.encode, lambda text: list(hf.encode(text).ids))
        assert vocabulary.special() | {"eot": 0} == {
            **dict.fromkeys(("sep", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_sep"), -1),
            "fim_rep": 4,  # <reponame>, which llama.cpp knows
            "bos": 1,
            "eos": 2,
            "pad": 2,
            "eot": 0,
        }
        assert not vocabulary.adds_bos()
        assert vocabulary.ends_generation(2)
        # 21 bytes have no token in this vocabulary; text without them comes back as it was.
        for text in texts:
            ids = vocabulary.encode(text)
            assert vocabulary.decode(ids).decode("utf-8", "replace") == hf.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"split_digits": False, "character_coverage": 1.0, "vocab_size": 2000},
        {"user_defined_symbols": ["<sep>", "[REF]", "▁▁", "▁▁▁▁"], "add_dummy_prefix": False},
        {"unk_id": 3, "bos_id": 0, "eos_id": 1, "pad_id": 2},
    ],
    ids=["llama2", "no-prefix", "plain", "user-defined", "other-ids"],
)
def test_sentencepiece(options: dict[str, Any], tmp_path: Path) -> None:
    spm = trained.train_sentencepiece(tmp_path, **options)
    vocabulary, notes = convert(tmp_path, spm.vocab_size())
    assert notes == []
    texts = [*plain_texts(), "a<sep>b [REF]c<sep><sep>", "    if x:\n        y"]
    with vocabulary:
        assert not differences(
            texts, lambda text: vocabulary.encode(text, parse_special=False), lambda text: list(spm.encode(text))
        )
        assert vocabulary.adds_bos()
        assert (vocabulary.special()["bos"], vocabulary.special()["eos"]) == (spm.bos_id(), spm.eos_id())
        for text in texts:
            ids = vocabulary.encode(text, parse_special=False)
            expected = text if options.get("add_dummy_prefix", True) is False or not text else f" {text}"
            assert vocabulary.decode(ids).decode() == expected.replace("▁", " ")


@pytest.mark.parametrize("style", ["prepend", "replace", "never", "always", "first"])
def test_tokenizer_json_made_from_sentencepiece(style: str, tmp_path: Path) -> None:
    spm = trained.train_sentencepiece(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    hf = trained.hf_from_sentencepiece(spm, style)
    hf.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token_id": 1, "eos_token_id": 2}
    notes: list[str] = []
    metadata = tokenizer_metadata(tmp_path, spm.vocab_size(), config, notes=notes)
    scores = metadata["tokenizer.ggml.scores"].data
    assert scores[3:] == tuple(spm.get_score(id) for id in range(3, spm.vocab_size()))
    assert metadata["tokenizer.ggml.add_space_prefix"].data == (style not in ("never", "replace"))
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        different = differences(
            [*plain_texts(), *texts_with(["<s>", "</s>"])],
            lambda text: vocabulary.encode(text, add_special=True),
            lambda text: list(hf.encode(text).ids),
        )
    if style == "always":
        (note,) = notes
        assert note.startswith("llama.cpp puts a space before text that begins with one, this")
        assert different
        assert not [
            text for text in different if not text.startswith((" ", "▁")) and "> " not in text and "▁" not in text
        ]
    elif style == "first":
        (note,) = notes
        assert "follows a special token" in note
        assert different
        assert not [text for text in different if not text.startswith((" ", "▁")) and "s>" not in text]
    else:
        assert notes == []
        assert different == []


def test_added_tokens(tmp_path: Path) -> None:
    """Added tokens that are not special are found in any text, and only special ones are control tokens."""
    hf = trained.train_byte_level(tmp_path, byte_level(split(trained.LLAMA3)), ignore_merges=True, template=False)
    hf.add_tokens([AddedToken(token, normalized=False) for token in ("<tool>", "été", "  x")])
    hf.save(str(tmp_path / "tokenizer.json"))
    vocabulary, notes = convert(tmp_path, hf.get_vocab_size() + 7)
    texts = [*plain_texts(), *texts_with(["<tool>", "été", "  x"])]
    with vocabulary:
        assert notes == []
        assert vocabulary.n_tokens == hf.get_vocab_size() + 7
        encoded = {
            parse: differences(
                texts,
                lambda text, parse=parse: vocabulary.encode(text, parse_special=parse),
                lambda text: list(hf.encode(text).ids),
            )
            for parse in (True, False)
        }
        assert encoded == {True: [], False: []}
        assert not vocabulary.adds_bos()
        assert vocabulary.piece(hf.token_to_id("été")) == "été".encode()


def test_roberta(tmp_path: Path) -> None:
    """Byte-level BPE with a token before and one behind every text, as RoBERTa's post-processor has it."""
    hf = trained.train_byte_level(tmp_path, byte_level(use_regex=True), template=False)
    first, last = ((token, hf.token_to_id(token)) for token in trained.SPECIAL[:2])
    hf.post_processor = processors.RobertaProcessing(last, first, add_prefix_space=False)
    hf.save(str(tmp_path / "tokenizer.json"))
    tokens = {
        "bos_token": trained.SPECIAL[0],
        "cls_token": trained.SPECIAL[0],
        "eos_token": trained.SPECIAL[1],
        "sep_token": trained.SPECIAL[1],
    }
    trained.write_json(tmp_path / "tokenizer_config.json", tokens)
    metadata = tokenizer_metadata(tmp_path, hf.get_vocab_size(), {})
    assert metadata["tokenizer.ggml.add_sep_token"].data is True
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert not differences(
            [*plain_texts(), *texts_with(list(trained.SPECIAL))],
            lambda text: vocabulary.encode(text, add_special=True),
            lambda text: list(hf.encode(text).ids),
        )
        assert vocabulary.encode("", add_special=True) == [first[1], last[1]]
