"""WordPiece, the tokenizer of BERT and most embedding models made from it: tokenizer.json, or the older vocab.txt.

llama.cpp finds tokens at the beginning of a word by `▁` in front of them and those that continue a word as they are,
where WordPiece has `##` in front of the latter. It splits text as BERT does, at spaces, punctuation and Chinese
characters; whether it lowercases and strips accents the file says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmkit.convert.tokenizer.bpe import trained_tokens
from llmkit.convert.tokenizer.files import TokenizerFiles, steps, token_content
from llmkit.convert.tokenizer.special import declared_contents, post_processing
from llmkit.convert.tokenizer.vocabulary import TokenTable, TokenType, Vocabulary, put_added_tokens, too_large
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.files import open_regular, read_exactly
from llmkit.formats.gguf import Value, boolean

VOCAB_TXT: Final = "vocab.txt"
_MAX_BYTES: Final = 64 << 20  # vocabularies of 120,000 tokens take 1 MB
_WORD: Final = "▁"
# What BertTokenizer calls its tokens where no file says otherwise.
_BERT_TOKENS: Final = {"bos": "[CLS]", "eos": "[SEP]", "sep": "[SEP]", "unk": "[UNK]", "pad": "[PAD]", "mask": "[MASK]"}
_MAX_CHARACTERS: Final = 100  # `max_input_chars_per_word`, where a file does not say


@dataclass(frozen=True, slots=True)
class _WordPiece:
    """What either kind of file says; `strip_accents` None means: if it lowercases."""

    path: Path
    vocab: Mapping[str, int]
    prefix: str
    lowercase: bool
    strip_accents: bool | None


def wordpiece_vocabulary(files: TokenizerFiles, n_vocab: int, notes: list[str]) -> Vocabulary:
    """The vocabulary of a tokenizer.json whose model is WordPiece, or of vocab.txt if there is none.

    Raises FormatError when a file contradicts itself, UnsupportedError when text is treated in ways that llama.cpp's
    tokenizer for these models does not, or the embedding is too small for the tokens.
    """
    model = _from_vocab_txt(files, notes) if files.tokenizer is None else _from_json(files, notes)
    added = files.added_tokens()
    special = {token.content for token in added if token.type is TokenType.CONTROL} | set(declared_contents(files))
    if files.tokenizer is None:
        special |= set(_BERT_TOKENS.values())
    table = TokenTable(n_vocab, model.path)
    for text, id in model.vocab.items():
        if id >= n_vocab:
            raise too_large(model.path, id, text, n_vocab)
        if text in special:
            table.put(id, text, TokenType.CONTROL)
        elif (found := _as_found(text, model.prefix)) is not None:
            table.put(id, found, TokenType.NORMAL)
    beyond = [token for token in added if token.content not in model.vocab]
    put_added_tokens(table, beyond, model.vocab, notes)
    for id in range(n_vocab):
        if table.text(id) is None:
            table.put(id, f"{_WORD}[PAD{id}]", TokenType.UNUSED)  # no text has such a word: brackets are words
    texts, types, _ = table.finish(notes)
    ids = {**model.vocab, **{token.content: token.id for token in beyond if token.id < n_vocab}}
    _require_ends(files, ids, model.path, notes)
    return Vocabulary(
        model="bert",
        pre="default",
        texts=texts,
        types=types,
        scores=None,
        merges=None,
        add_space_prefix=False,
        adds_bos=True,
        adds_eos=True,
        ids=ids,
        special={kind: ids[text] for kind, text in _BERT_TOKENS.items() if text in ids},
        more=_normalizer_keys(model),
    )


def _as_found(text: str, prefix: str) -> str | None:
    """The text by which llama.cpp finds a token; None for one that it would find where it must not.

    A continuing `▁` would be found at the beginning of every word.
    """
    if not text.startswith(prefix):
        return _WORD + text
    continuing = text.removeprefix(prefix)
    return None if continuing in ("", _WORD) else continuing


def _normalizer_keys(model: _WordPiece) -> dict[str, Value]:
    keys = {"tokenizer.ggml.normalizer.lowercase": boolean(model.lowercase)}
    if model.strip_accents is not None:
        keys["tokenizer.ggml.normalizer.strip_accents"] = boolean(model.strip_accents)
    return keys


def _from_json(files: TokenizerFiles, notes: list[str]) -> _WordPiece:
    path = files.tokenizer_json
    assert files.tokenizer is not None
    model = files.tokenizer["model"]
    prefix = model.get("continuing_subword_prefix", "##")
    if not isinstance(prefix, str) or not prefix:
        raise UnsupportedError(
            f"{path}: model.continuing_subword_prefix is {prefix!r:.40}; it tells which tokens continue a word"
        )
    for step in steps(files.tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") != "BertPreTokenizer":
            raise UnsupportedError(
                f"{path}: pre_tokenizer: {dict(step)!r:.200}; llama.cpp splits text for WordPiece as BERT does only"
            )
    normalizer = list(steps(files.tokenizer.get("normalizer"), "normalizers"))
    lowercase, strips = _normalizer(normalizer, path, notes)
    bert: dict[str, Any] = next((step for step in normalizer if step.get("type") == "BertNormalizer"), {})
    cleans, splits_chinese = (bert.get(key, bool(bert)) is True for key in ("clean_text", "handle_chinese_chars"))
    notes += _notes(
        cleans, splits_chinese, lowercase if strips is None else strips, model.get("max_input_chars_per_word")
    )
    return _WordPiece(path, trained_tokens(model, path), prefix, lowercase, strips)


def _normalizer(found: list[dict[str, Any]], path: Path, notes: list[str]) -> tuple[bool, bool | None]:
    """Whether text is lowercased and accents are stripped, which None leaves to the former, as in BertNormalizer."""
    lowercase = False
    strips: bool | None = False
    for step in found:
        match step.get("type"):
            case "BertNormalizer":
                lowercase = step.get("lowercase", True) is True
                stated = step.get("strip_accents")
                strips = None if stated is None else stated is True
            case "Lowercase":
                lowercase = True
            case "StripAccents":
                strips = True
            case "NFD":
                pass  # StripAccents needs it
            case "NFC" | "NFKC" | "NFKD" as form:
                notes.append(f"the tokenizer normalises text ({form}), llama.cpp does not: tokens may differ")
            case kind:
                raise UnsupportedError(
                    f"{path}: normalizer: a step of type {kind!r:.40}; llama.cpp's tokenizer for WordPiece can "
                    "lowercase and strip accents only"
                )
    return lowercase, strips


def _from_vocab_txt(files: TokenizerFiles, notes: list[str]) -> _WordPiece:
    """vocab.txt has one token a line, in the order of ids; how text is treated tokenizer_config.json says."""
    path = files.folder / VOCAB_TXT
    vocab: dict[str, int] = {}
    for id, text in enumerate(_lines(path)):
        if vocab.setdefault(text, id) != id:
            raise FormatError(path, f"lines {vocab[text] + 1} and {id + 1} hold the same token, {text!r}")
    unknown = token_content(files.config.get("unk_token")) or _BERT_TOKENS["unk"]
    if unknown not in vocab:
        raise FormatError(path, f"has no token {unknown!r}; expected BERT's vocabulary, one token a line")

    def option(key: str, default: bool | None) -> bool | None:
        value = files.config.get(key)
        return default if value is None else value is True

    lowercase, strips = option("do_lower_case", True) is True, option("strip_accents", None)
    splits_chinese = option("tokenize_chinese_chars", True) is True
    notes += _notes(True, splits_chinese, lowercase if strips is None else strips, None)
    return _WordPiece(path, vocab, "##", lowercase, strips)


def _lines(path: Path) -> Iterator[str]:
    file, size = open_regular(path)
    with file:
        if size > _MAX_BYTES:
            raise FormatError(path, f"{size:,} bytes; expected a vocabulary of at most {_MAX_BYTES:,}")
        data = read_exactly(file, size, path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(path, f"not valid UTF-8 (byte {error.start})") from None
    # Only \n ends a line: some tokens are other characters that Unicode counts as line ends.
    return (line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))


def _require_ends(files: TokenizerFiles, ids: Mapping[str, int], path: Path, notes: list[str]) -> None:
    """llama.cpp puts a first and a last token around every text, whatever the file says: both must be known."""
    template = post_processing(files.tokenizer)
    for text, kind in ((template.first, "bos"), (template.last, "sep")):
        if (text or _BERT_TOKENS[kind]) not in ids:
            raise UnsupportedError(
                f"{path}: has no token {text or _BERT_TOKENS[kind]!r}; llama.cpp puts it around every text"
            )
    if files.tokenizer is not None and not (template.adds_first and template.adds_last):
        notes.append(
            f"llama.cpp puts {_BERT_TOKENS['bos']} and {_BERT_TOKENS['sep']} around every text, this tokenizer does not"
        )


def _notes(cleans: bool, splits_chinese: bool, strips: bool, limit: object) -> list[str]:
    """Where llama.cpp's tokens are others than the tokenizer's own (tests/convert/test_tokenizer_wordpiece.py)."""
    notes = []
    if not cleans:
        notes.append("llama.cpp drops control characters from text, this tokenizer does not")
    if not splits_chinese:
        notes.append("llama.cpp makes every Chinese character a word of its own, this tokenizer does not")
    if strips:
        notes.append(
            "where accents are stripped, llama.cpp also drops vowel signs of Indic scripts and all but the first "
            "letter of Korean syllables: tokens differ for such text"
        )
    limit = _MAX_CHARACTERS if limit is None else limit
    notes.append(
        f"tokens differ for words of more than {limit!r:.20} characters, which this tokenizer takes as one unknown "
        "token and llama.cpp splits, and for text with `▁`"
    )
    return notes
