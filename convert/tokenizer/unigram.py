"""Unigram, SentencePiece's other kind: XLM-RoBERTa and the multilingual embedding models made from it.

Every token has a score, the logarithm of its probability, and a text is split so that the sum is largest. Before that
SentencePiece's rules normalise it (`precompiled_charsmap`, which llama.cpp reads too). The vocabulary stands in
tokenizer.json, or in a SentencePiece file where that is all there is.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

from llmkit.convert.tokenizer.files import TokenizerFiles, steps
from llmkit.convert.tokenizer.sentencepiece import Piece, SentencePieceModel
from llmkit.convert.tokenizer.special import declared_contents
from llmkit.convert.tokenizer.vocabulary import TokenTable, TokenType, Vocabulary, put_added_tokens, too_large
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, ValueType, array, boolean
from llmkit.formats.strictjson import json_kind

# The file name of models that put fairseq's four tokens before the pieces of SentencePiece.
FAIRSEQ_FILE: Final = "sentencepiece.bpe.model"
_FAIRSEQ: Final = ("<s>", "<pad>", "</s>", "<unk>")
_FAIRSEQ_IDS: Final = {"bos": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3}
_MASK: Final = "<mask>"
_SENTENCEPIECE_TOKENS: Final = 3  # <unk>, <s>, </s>, which fairseq has its own for

_SPACE: Final = "▁"
_LARGEST_SCORE: Final = 3e38  # float32, the type in files


@dataclass(frozen=True, slots=True)
class _Treatment:
    """What is done to a text before it is split: SentencePiece's rules, spaces joined, a space put in front."""

    charsmap: bytes
    joins_spaces: bool
    adds_space: bool

    def keys(self, path: Path) -> dict[str, Value]:
        found = {"tokenizer.ggml.remove_extra_whitespaces": boolean(self.joins_spaces)}
        if self.charsmap:
            _check_charsmap(self.charsmap, path)
            found["tokenizer.ggml.precompiled_charsmap"] = array(ValueType.UINT8, list(self.charsmap))
        return found


def unigram_vocabulary(files: TokenizerFiles, n_vocab: int, notes: list[str]) -> Vocabulary:
    """The vocabulary of a tokenizer.json whose model is Unigram.

    Raises FormatError when the file contradicts itself, UnsupportedError when it treats text in ways that llama.cpp's
    tokenizer for these models does not, or the embedding is too small for its tokens.
    """
    path = files.tokenizer_json
    assert files.tokenizer is not None
    model = files.tokenizer["model"]
    pieces = _scored_tokens(model, path)
    unknown = model.get("unk_id")
    if isinstance(unknown, bool) or not isinstance(unknown, int) or not 0 <= unknown < len(pieces):
        raise FormatError(path, f"model.unk_id: expected the id of one of {len(pieces)} tokens, found {unknown!r:.40}")
    if model.get("byte_fallback") is True:
        notes.append(
            "characters without a token are spelled in bytes by this tokenizer; llama.cpp takes them as unknown"
        )
    treatment = _treatment(files.tokenizer, path, notes)
    added = files.added_tokens()
    special = {*declared_contents(files), *(token.content for token in added if token.type is TokenType.CONTROL)}
    vocab: dict[str, int] = {}
    table = TokenTable(n_vocab, path)
    for id, (text, score) in enumerate(pieces):
        if id >= n_vocab:
            raise too_large(path, id, text, n_vocab)
        type = TokenType.UNKNOWN if id == unknown else TokenType.CONTROL if text in special else TokenType.NORMAL
        table.put(id, text, type, score)
        vocab.setdefault(text, id)
    beyond = [token for token in added if token.content not in vocab]
    put_added_tokens(table, beyond, vocab, notes)
    for token in added:
        if vocab.get(token.content) == token.id and token.type is TokenType.USER_DEFINED:
            table.put(token.id, token.text, TokenType.USER_DEFINED, pieces[token.id][1])
    texts, types, scores = table.finish(notes)
    return _vocabulary(
        (texts, types, scores),
        {**vocab, **{token.content: token.id for token in beyond if token.id < n_vocab}},
        {"unk": unknown},
        treatment,
        path,
        adds_ends=False,
    )


def unigram_sentencepiece_vocabulary(
    files: TokenizerFiles, model: SentencePieceModel, path: Path, n_vocab: int, notes: list[str]
) -> Vocabulary:
    """The vocabulary of a SentencePiece Unigram model at `path`, and the tokens that JSON files beside it add.

    Under the name sentencepiece.bpe.model it has the ids of fairseq: four tokens first, then the pieces without
    SentencePiece's own three, then the mask token.
    """
    is_fairseq = path.name == FAIRSEQ_FILE
    pieces = _fairseq_pieces(model) if is_fairseq else list(model.pieces)
    table = TokenTable(n_vocab, path)
    for id, piece in enumerate(pieces):
        if id >= n_vocab:
            raise too_large(path, id, piece.text, n_vocab)
        text = piece.text.replace(_SPACE, " ") if piece.type is TokenType.USER_DEFINED else piece.text
        table.put(id, text, piece.type, piece.score)
    if any(piece.type is TokenType.BYTE for piece in pieces):
        notes.append(
            "characters without a token are spelled in bytes by this tokenizer; llama.cpp takes them as unknown"
        )
    ids: dict[str, int] = {}
    for id, piece in enumerate(pieces):
        ids.setdefault(piece.text, id)
    beyond = [token for token in files.added_tokens() if token.content not in ids]
    put_added_tokens(table, beyond, ids, notes)
    special = {kind: id for kind, id in model.special.items() if 0 <= id < len(pieces)}
    if is_fairseq:
        special = {**_FAIRSEQ_IDS, "mask": len(pieces) - 1}
    return _vocabulary(
        table.finish(notes),
        {**ids, **{token.content: token.id for token in beyond if token.id < n_vocab}},
        special,
        _Treatment(model.charsmap, model.remove_extra_whitespaces, model.add_dummy_prefix),
        path,
        adds_ends=is_fairseq,
    )


def _vocabulary(
    columns: tuple[tuple[str, ...], tuple[TokenType, ...], tuple[float, ...]],
    ids: Mapping[str, int],
    special: Mapping[str, int],
    treatment: _Treatment,
    path: Path,
    *,
    adds_ends: bool,
) -> Vocabulary:
    texts, types, scores = columns
    return Vocabulary(
        model="t5",
        pre="default",
        texts=texts,
        types=types,
        scores=scores,
        merges=None,
        add_space_prefix=treatment.adds_space,
        adds_bos=adds_ends,
        adds_eos=adds_ends,
        ids=ids,
        special=special,
        more=treatment.keys(path),
    )


def _fairseq_pieces(model: SentencePieceModel) -> list[Piece]:
    kinds = (TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL, TokenType.UNKNOWN)
    first = [Piece(text, 0.0, kind) for text, kind in zip(_FAIRSEQ, kinds, strict=True)]
    return [*first, *model.pieces[_SENTENCEPIECE_TOKENS:], Piece(_MASK, 0.0, TokenType.CONTROL)]


def _scored_tokens(model: Mapping[str, Any], path: Path) -> list[tuple[str, float]]:
    """`model.vocab` of a Unigram tokenizer.json: pairs of text and score, in the order of ids."""
    entries = model.get("vocab")
    if not isinstance(entries, list) or not entries:
        raise FormatError(path, f"model.vocab: expected an array of [text, score], found {json_kind(entries)}")
    pieces = []
    for id, entry in enumerate(entries):
        text, score = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        number = score if isinstance(score, int | float) and not isinstance(score, bool) else inf
        if not isinstance(text, str) or not abs(number) < _LARGEST_SCORE:
            raise FormatError(path, f"model.vocab: entry {id}: expected [text, score], found {entry!r:.80}")
        pieces.append((text, float(number)))
    return pieces


def _treatment(tokenizer: Mapping[str, Any], path: Path, notes: list[str]) -> _Treatment:
    """What the normalizer and the pre-tokenizer of a tokenizer.json do."""
    charsmap = b""
    joins = strips_end = False
    for step in steps(tokenizer.get("normalizer"), "normalizers"):
        kind = step.get("type")
        if kind == "Precompiled" and not charsmap:
            charsmap = _decoded(step.get("precompiled_charsmap"), path)
        elif kind == "Replace" and step.get("pattern") == {"Regex": " {2,}"} and step.get("content") in (" ", _SPACE):
            joins = True
        elif kind == "Strip" and step.get("strip_left") is False:
            strips_end = step.get("strip_right") is True
        else:
            raise _unsupported(path, "normalizer", step)
    prefix: str | None = None
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "WhitespaceSplit" and prefix is None:
            joins = strips_end = True
        elif kind == "Metaspace" and prefix is None and step.get("replacement", _SPACE) == _SPACE:
            prefix = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
        else:
            raise _unsupported(path, "pre_tokenizer", step)
    if prefix is None:
        raise UnsupportedError(f"{path}: pre_tokenizer: no Metaspace step; llama.cpp turns spaces into `▁`")
    if prefix == "never" and joins:
        raise UnsupportedError(
            f"{path}: pre_tokenizer: no space is put before a text; llama.cpp does so where repeated spaces are joined"
        )
    if not charsmap and joins:
        notes.append("llama.cpp splits text at spaces, this tokenizer at line ends and tabs too")
    if charsmap:
        notes.append(
            "tokenizer.json normalises a character together with its marks and joiners, llama.cpp and SentencePiece "
            "each by itself: tokens may differ for text that has them"
        )
    if prefix == "first":
        notes.append("llama.cpp puts a space before text that follows a special token, this tokenizer does not")
    if joins and not strips_end:
        notes.append("llama.cpp drops a space at the end of a text, this tokenizer does not")
    if not joins and prefix != "never":
        notes.append("llama.cpp puts a space before text that begins with one, this tokenizer does not")
    return _Treatment(charsmap, joins, prefix != "never")


def _decoded(text: object, path: Path) -> bytes:
    if text is None:
        return b""
    try:
        return b64decode(text, validate=True) if isinstance(text, str) else b64decode(b"!", validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(path, f"normalizer: precompiled_charsmap is no base64 text: {text!r:.60}") from None


def _check_charsmap(charsmap: bytes, path: Path) -> None:
    """The rules are a trie of 32-bit units, its size in bytes before it, and texts that end in a zero byte behind it.

    llama.cpp looks nothing up safely in others: it would end the process.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 8 or size % 4 or 4 + size >= len(charsmap) or charsmap[-1] != 0:
        raise FormatError(path, f"precompiled_charsmap: {len(charsmap):,} bytes that are no rules of SentencePiece")


def _unsupported(path: Path, where: str, step: Mapping[str, Any]) -> UnsupportedError:
    return UnsupportedError(
        f"{path}: {where}: {dict(step)!r:.200}; llama.cpp's tokenizer for Unigram models normalises by SentencePiece's "
        "rules, joins spaces and turns them into `▁`"
    )
