"""WordPiece: llama.cpp on our metadata against Hugging Face's `tokenizers`, on BERT's own vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from tokenizers import Tokenizer

from llmkit.convert.tokenizer import tokenizer_metadata
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value
from tests.convert.trained import write_json
from tests.convert.vocabfile import LlamaVocabulary
from tests.corpus import plain_texts, random_texts, texts_with
from tests.tokenizer_differences import wordpiece_differs

SPECIAL = ["[CLS]", "[SEP]", "[MASK]", "[UNK]"]
TEXTS = [*plain_texts(), *texts_with(SPECIAL), *random_texts(500, seed=1)]
N_VOCAB = 30522


def copy(minilm_checkpoint: Path, folder: Path, *names: str) -> Path:
    for name in names:
        copyfile(minilm_checkpoint / name, folder / name)
    return folder


def change(folder: Path, **parts: Any) -> Tokenizer:
    """Put `parts` into the tokenizer.json (those of an object beside what it has) and open it."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    for key, value in {"truncation": None, "padding": None, **parts}.items():
        found[key] = {**found[key], **value} if isinstance(value, dict) and isinstance(found.get(key), dict) else value
    write_json(path, found)
    return Tokenizer.from_file(str(path))


def metadata_of(folder: Path, n_vocab: int = N_VOCAB) -> tuple[dict[str, Value], list[str]]:
    notes: list[str] = []
    return tokenizer_metadata(folder, n_vocab, {"model_type": "bert"}, notes=notes), notes


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strips", [None, True, False])
def test_tokens(lowercase: bool, strips: bool | None, minilm_checkpoint: Path, tmp_path: Path) -> None:
    copy(minilm_checkpoint, tmp_path, "tokenizer.json", "tokenizer_config.json")
    hf = change(tmp_path, normalizer={"lowercase": lowercase, "strip_accents": strips})
    metadata, notes = metadata_of(tmp_path)
    effective = lowercase if strips is None else strips
    assert any("Korean" in note for note in notes) == effective
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert vocabulary.special() | {"bos": 101, "eos": 102, "sep": 102, "pad": 0} == vocabulary.special()
        different = [text for text in TEXTS if vocabulary.encode(text, add_special=True) != hf.encode(text).ids]
        assert [t for t in different if not wordpiece_differs(t, strips=effective, lowercases=lowercase)] == []
        assert different, "the list of differences is out of date"


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        ("x" * 101, ["xx", *["##x"] * 99], ["[UNK]"]),
        ("안녕", ["ᄋ", "##ᄂ"], ["ᄋ", "##ᅡ", "##ᆫ", "##ᄂ", "##ᅧ", "##ᆼ"]),
        ("गाना", ["ग", "##न"], ["ग", "##ा", "##न", "##ा"]),
        ("a▁b", ["a", "b"], ["[UNK]"]),
    ],
)
def test_where_llama_cpp_differs(
    text: str, ours: list[str], theirs: list[str], minilm_checkpoint: Path, tmp_path: Path
) -> None:
    """The differences that notes tell of, as they are: when llama.cpp changes them, the notes must follow."""
    copy(minilm_checkpoint, tmp_path, "tokenizer.json")
    hf = change(tmp_path)
    with LlamaVocabulary(metadata_of(tmp_path)[0], tmp_path / "v.gguf") as vocabulary:
        found = [hf.id_to_token(id) for id in vocabulary.encode(text)]
    assert hf.encode(text, add_special_tokens=False).tokens == theirs
    if text.startswith("x"):
        assert len(found) > 1
    else:
        assert found == ours


def test_vocab_txt(minilm_checkpoint: Path, tmp_path: Path) -> None:
    """Older checkpoints have no tokenizer.json: vocab.txt and BERT's defaults say the same."""
    (tmp_path / "json").mkdir()
    (tmp_path / "txt").mkdir()
    names = ("tokenizer_config.json", "special_tokens_map.json")
    whole = copy(minilm_checkpoint, tmp_path / "json", "tokenizer.json", *names)
    for more in (names, ()):
        older = copy(minilm_checkpoint, tmp_path / "txt", "vocab.txt", *more)
        expected, found = metadata_of(whole)[0], metadata_of(older)[0]
        found |= {"tokenizer.ggml.add_sep_token": expected["tokenizer.ggml.add_sep_token"]}  # nothing says it
        assert found == expected
        for name in names:
            (older / name).unlink(missing_ok=True)


def test_cased_vocab_txt(minilm_checkpoint: Path, tmp_path: Path) -> None:
    copy(minilm_checkpoint, tmp_path, "vocab.txt")
    write_json(tmp_path / "tokenizer_config.json", {"do_lower_case": False, "strip_accents": True})
    metadata, notes = metadata_of(tmp_path)
    assert metadata["tokenizer.ggml.normalizer.lowercase"].data is False
    assert metadata["tokenizer.ggml.normalizer.strip_accents"].data is True
    write_json(tmp_path / "tokenizer_config.json", {"tokenize_chinese_chars": False})
    assert any("Chinese" in note for note in metadata_of(tmp_path)[1])
    assert not any("Chinese" in note for note in notes)


def test_rows_without_tokens(minilm_checkpoint: Path, tmp_path: Path) -> None:
    """An embedding that was padded to a round number has rows that no token uses."""
    copy(minilm_checkpoint, tmp_path, "tokenizer.json")
    metadata, _ = metadata_of(tmp_path, N_VOCAB + 6)
    with LlamaVocabulary(metadata, tmp_path / "v.gguf") as vocabulary:
        assert vocabulary.n_tokens == N_VOCAB + 6
        ids = vocabulary.encode(f"[PAD{N_VOCAB}] ▁[PAD{N_VOCAB}]")
        assert max(ids) < N_VOCAB


@pytest.mark.parametrize(
    ("parts", "fragments"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, ["pre_tokenizer", "as BERT does only"]),
        ({"normalizer": {"type": "Prepend", "prepend": "x"}}, ["normalizer", "'Prepend'"]),
        ({"model": {"continuing_subword_prefix": ""}}, ["continuing_subword_prefix"]),
    ],
)
def test_unknown_treatment(
    parts: dict[str, Any], fragments: list[str], minilm_checkpoint: Path, tmp_path: Path
) -> None:
    copy(minilm_checkpoint, tmp_path, "tokenizer.json")
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    for key, value in parts.items():
        found[key] = {**found[key], **value} if key == "model" else value
    write_json(tmp_path / "tokenizer.json", found)
    with pytest.raises(UnsupportedError) as caught:
        metadata_of(tmp_path)
    assert all(fragment in str(caught.value) for fragment in fragments)


def test_sequence_of_normalizers(minilm_checkpoint: Path, tmp_path: Path) -> None:
    copy(minilm_checkpoint, tmp_path, "tokenizer.json")
    steps = [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path / "tokenizer.json", {**found, "normalizer": {"type": "Sequence", "normalizers": steps}})
    metadata, notes = metadata_of(tmp_path)
    assert metadata["tokenizer.ggml.normalizer.lowercase"].data is True
    assert metadata["tokenizer.ggml.normalizer.strip_accents"].data is True
    assert any("control characters" in note for note in notes)


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"a\nb\na\n", "lines 1 and 3 hold the same token, 'a'"),
        (b"a\nb\n", "has no token '[UNK]'"),
        (b"\xff\n", "not valid UTF-8"),
    ],
)
def test_broken_vocab_txt(data: bytes, fragment: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(data)
    with pytest.raises(FormatError, match=r"vocab\.txt") as caught:
        metadata_of(tmp_path)
    assert fragment in str(caught.value)


def test_no_token_to_begin_with(tmp_path: Path) -> None:
    """llama.cpp ends the process where it must add a token that a vocabulary does not have."""
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    with pytest.raises(UnsupportedError, match=r"no token '\[CLS\]'"):
        metadata_of(tmp_path)


def test_larger_than_the_embedding(minilm_checkpoint: Path, tmp_path: Path) -> None:
    copy(minilm_checkpoint, tmp_path, "tokenizer.json")
    with pytest.raises(UnsupportedError, match="another model"):
        metadata_of(tmp_path, N_VOCAB - 1)
