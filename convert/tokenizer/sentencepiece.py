"""SentencePiece BPE from tokenizer.model (Llama 1 and 2, TinyLlama, Mistral).

Format: sentencepiece_model.proto of google/sentencepiece, a protobuf message; only the fields used here are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Final, NamedTuple

from llmkit.convert.tokenizer.files import MAX_TOKENIZER_BYTES, TokenizerFiles
from llmkit.convert.tokenizer.vocabulary import (
    AddedToken,
    TokenTable,
    TokenType,
    Vocabulary,
    fitting_added_tokens,
    too_large,
)
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.files import foreign_content, open_regular, read_exactly
from llmkit.formats.protobuf import WireError, read_fields

_MODEL_TYPES: Final = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}
_UNIGRAM: Final = 1
_BPE: Final = 2


class Piece(NamedTuple):
    """One piece of the vocabulary; its id is its position."""

    text: str
    score: float
    type: TokenType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The parts of a ModelProto that a conversion needs. `special` holds ids by kind, -1 for none."""

    pieces: tuple[Piece, ...]
    model_type: int
    special: dict[str, int]
    normalizer: str
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    @property
    def is_unigram(self) -> bool:
        return self.model_type == _UNIGRAM


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read tokenizer.model; FormatError if it is not a SentencePiece model."""
    file, size = open_regular(path)
    with file:
        if size > MAX_TOKENIZER_BYTES:
            raise FormatError(path, f"{size:,} bytes; expected at most {MAX_TOKENIZER_BYTES:,}")
        data = read_exactly(file, size, path)
    try:
        model = parse_sentencepiece(memoryview(data))
    except WireError as error:
        problem = foreign_content(data[:64]) or f"not a SentencePiece model: {error}"
        raise FormatError(path, problem) from None
    if not model.pieces:
        raise FormatError(path, "not a SentencePiece model: it has no pieces")
    return model


def parse_sentencepiece(message: memoryview) -> SentencePieceModel:
    """Decode a ModelProto; WireError for bytes that are none."""
    pieces: list[Piece] = []
    model_type = 1
    special = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
    special_fields = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
    normalizer, charsmap, dummy_prefix, remove_spaces = "", b"", True, True
    for field in read_fields(message):
        if field.number == 1:
            pieces.append(_piece(field.message()))
        elif field.number == 2:  # trainer_spec
            for inner in read_fields(field.message()):
                if inner.number == 3:
                    model_type = inner.integer()
                elif inner.number in special_fields:
                    special[special_fields[inner.number]] = inner.integer()
        elif field.number == 3:  # normalizer_spec
            for inner in read_fields(field.message()):
                if inner.number == 1:
                    normalizer = inner.text()
                elif inner.number == 2:
                    charsmap = bytes(inner.message())
                elif inner.number == 3:
                    dummy_prefix = inner.boolean()
                elif inner.number == 4:
                    remove_spaces = inner.boolean()
    return SentencePieceModel(tuple(pieces), model_type, special, normalizer, charsmap, dummy_prefix, remove_spaces)


def _piece(message: memoryview) -> Piece:
    text, score, type = "", 0.0, TokenType.NORMAL
    for field in read_fields(message):
        if field.number == 1:
            text = field.text()
        elif field.number == 2:
            score = field.float32()
            if not isfinite(score):
                raise WireError(f"piece {text!r} has score {score}")
        elif field.number == 3:
            number = field.integer()
            if number not in TokenType.__members__.values():
                raise WireError(f"piece {text!r} has type {number}")
            type = TokenType(number)
    return Piece(text, score, type)


def sentencepiece_vocabulary(
    files: TokenizerFiles, model: SentencePieceModel, n_vocab: int, notes: list[str]
) -> Vocabulary:
    """The vocabulary of a tokenizer.model and the tokens added to it by the JSON files beside it.

    Raises UnsupportedError for models other than BPE, and when the embedding is too small for the pieces.
    """
    path = files.folder / "tokenizer.model"
    if model.model_type != _BPE:
        kind = _MODEL_TYPES.get(model.model_type, str(model.model_type))
        raise UnsupportedError(f"{path}: a SentencePiece {kind} model; llama.cpp splits text by BPE or Unigram only")
    if model.charsmap:
        notes.append(
            f"tokenizer.model normalises text ({model.normalizer or 'custom rules'}), llama.cpp does not: tokens "
            "differ for text it changes"
        )
    if model.remove_extra_whitespaces:
        notes.append("tokenizer.model joins repeated spaces, llama.cpp does not: tokens differ where there are any")
    table = TokenTable(n_vocab, path)
    buildable = _Buildable(model.pieces)
    prefix = files.config.get("add_prefix_space")
    add_space_prefix = prefix if isinstance(prefix, bool) else model.add_dummy_prefix
    searched = [p.text for p in model.pieces if p.type is TokenType.USER_DEFINED and not buildable(p.text)]
    if searched and add_space_prefix:
        notes.append(
            f"llama.cpp puts a space before text that follows one of {len(searched)} user-defined pieces (such as "
            f"{searched[0]!r}), SentencePiece does not"
        )
    for id, piece in enumerate(model.pieces):
        if id >= n_vocab:
            raise too_large(path, id, piece.text, n_vocab)
        text, type = piece.text, piece.type
        if type is TokenType.USER_DEFINED:
            if buildable(text):
                type = TokenType.NORMAL
            else:
                text = text.replace("▁", " ")
        table.put(id, text, type, piece.score)
    added = _added_tokens(files, table, len(model.pieces))
    for token in fitting_added_tokens(added, n_vocab, notes):
        before = table.text(token.id)
        if before not in (None, token.content, token.text):
            notes.append(f"token {token.id}, {before!r} in tokenizer.model, is {token.content!r} by the JSON files")
        table.put_added(token)
    texts, types, scores = table.finish(notes)
    ids = {piece.text: id for id, piece in enumerate(model.pieces)}
    return Vocabulary(
        model="llama",
        pre="default",
        texts=texts,
        types=types,
        scores=scores,
        merges=None,
        add_space_prefix=add_space_prefix,
        adds_bos=True,
        ids={**ids, **{token.content: token.id for token in added if token.id < n_vocab}},
        special={kind: id for kind, id in model.special.items() if 0 <= id < len(model.pieces)},
    )


def _added_tokens(files: TokenizerFiles, table: TokenTable, n_pieces: int) -> list[AddedToken]:
    """Tokens of the JSON files; those of tokenizer.json only where tokenizer.model has no piece.

    tokenizer.json also lists pieces of tokenizer.model, which say nothing new; the other files name a token only
    to change it.
    """
    named = {*files.added_tokens_json.values(), *(int(key) for key in files.config.get("added_tokens_decoder") or ())}
    return [token for token in files.added_tokens() if token.id >= n_pieces or token.id in named]


class _Buildable:
    """Whether merging neighbours, piece by piece, can arrive at a text.

    SentencePiece finds user-defined pieces before it merges anything. Where merging arrives at the piece anyway
    (runs of spaces, single characters), it stays a normal token: as a user-defined token llama.cpp would put a
    space before the text that follows it.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._texts = {piece.text for piece in pieces}
        self._known: dict[str, bool] = {}

    def __call__(self, text: str) -> bool:
        if len(text) <= 1:
            return True
        if len(text) > 64 or text not in self._texts:
            return False
        if text not in self._known:
            self._known[text] = any(self(text[:i]) and self(text[i:]) for i in range(1, len(text)))
        return self._known[text]
