"""The vocabulary as GGUF stores it: one text, type and score per row of the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value, ValueType, array, boolean, string


class TokenType(IntEnum):
    """Token types of GGUF files (`enum llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# What the peer's converter gives tokens outside the trained vocabulary, and holes in it (conversion/base.py).
ADDED_SCORE: Final = -1000.0
HOLE_SCORE: Final = -10000.0

# Added tokens that are control tokens although their file does not say so (conversion/base.py,
# does_token_look_special): what a chat template writes must not come from a user's text.
_CONTROL_TEXTS: Final = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
_CONTROL_BRACKETS: Final = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token outside the trained vocabulary; it is found in the text before anything else happens to the text."""

    id: int
    content: str
    special: bool
    strips: bool = False  # lstrip, rstrip or single_word

    @property
    def type(self) -> TokenType:
        bracketed = any(
            self.content.startswith(left) and self.content.endswith(right) for left, right in _CONTROL_BRACKETS
        )
        if self.special or bracketed or self.content in _CONTROL_TEXTS:
            return TokenType.CONTROL
        return TokenType.USER_DEFINED

    @property
    def text(self) -> str:
        """The text as llama.cpp searches for it: in the user's text, where a space is still a space."""
        return self.content if self.type is TokenType.CONTROL else self.content.replace("▁", " ")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What one kind of tokenizer file says, ready for the keys `tokenizer.ggml.*`.

    `texts`, `types` and `scores` have one entry per embedding row; `scores` is None for byte-level BPE and `merges`
    is None for SentencePiece. `adds_bos` and `adds_eos` say whether BOS and EOS are added where no file says otherwise;
    None means that llama.cpp's default for EOS, none, holds. `ids` finds a token
    by the content that the checkpoint's files use for it. `special` holds special token ids that the tokenizer file
    itself declares. `more` are keys that only one kind of tokenizer has.
    """

    model: str
    pre: str
    texts: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...] | None
    add_space_prefix: bool
    adds_bos: bool
    ids: Mapping[str, int]
    special: Mapping[str, int] = field(default_factory=dict)
    adds_eos: bool | None = None
    more: Mapping[str, Value] = field(default_factory=dict)

    def metadata(self) -> dict[str, Value]:
        """The keys that describe the tokens themselves."""
        found = {
            "tokenizer.ggml.model": string(self.model),
            "tokenizer.ggml.pre": string(self.pre),
            "tokenizer.ggml.add_space_prefix": boolean(self.add_space_prefix),
            "tokenizer.ggml.tokens": array(ValueType.STRING, self.texts),
        }
        if self.scores is not None:
            found["tokenizer.ggml.scores"] = array(ValueType.FLOAT32, self.scores)
        found["tokenizer.ggml.token_type"] = array(ValueType.INT32, self.types)
        if self.merges is not None:
            found["tokenizer.ggml.merges"] = array(ValueType.STRING, self.merges)
        return {**found, **self.more}


class TokenTable:
    """Collects tokens by id for an embedding of `n_vocab` rows; `path` is the file named in errors."""

    def __init__(self, n_vocab: int, path: Path) -> None:
        self.n_vocab = n_vocab
        self.path = path
        self._texts: list[str | None] = [None] * n_vocab
        self._types = [TokenType.UNUSED] * n_vocab
        self._scores = [HOLE_SCORE] * n_vocab

    def put(self, id: int, text: str, type: TokenType, score: float = 0.0) -> None:
        """Set token `id`, which must be below `n_vocab`."""
        self._texts[id] = text
        self._types[id] = type
        self._scores[id] = score

    def text(self, id: int) -> str | None:
        return self._texts[id]

    def type(self, id: int) -> TokenType:
        return self._types[id]

    def put_added(self, token: AddedToken) -> None:
        """Set an added token over whatever is there, as the peer does."""
        self.put(token.id, token.text, token.type, ADDED_SCORE)

    def finish(self, notes: list[str]) -> tuple[tuple[str, ...], tuple[TokenType, ...], tuple[float, ...]]:
        """Texts, types and scores for all ids; holes become `[PAD{id}]`, never produced.

        Texts come out unique, because llama.cpp aborts the process when two tokens share one. Raises FormatError
        for text that is not Unicode (lone surrogates out of JSON escapes).
        """
        owner: dict[str, int] = {}
        nameless: dict[int, str] = {}
        for id, text in enumerate(self._texts):
            if text is None:
                nameless[id] = f"[PAD{id}]"
            elif text and owner.setdefault(text, id) != id:
                notes.append(f"token {id} repeats the text of token {owner[text]}, {text!r}; it is marked as unused")
                nameless[id] = f"[UNUSED{id}]"
                self._types[id] = TokenType.UNUSED
        for id, name in nameless.items():
            while name in owner:
                name += "_"
            owner[name] = id
            self._texts[id] = name
        texts = [text or "" for text in self._texts]
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError:
            broken = next(id for id, text in enumerate(texts) if not is_unicode(text))
            raise FormatError(self.path, f"token {broken} is not valid Unicode: {texts[broken]!r}") from None
        return tuple(texts), tuple(self._types), tuple(self._scores)


def is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which JSON escapes can spell but UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def put_added_tokens(table: TokenTable, tokens: list[AddedToken], vocab: Mapping[str, int], notes: list[str]) -> None:
    """Put the added tokens of a tokenizer.json over its trained ones.

    Raises FormatError where the two contradict each other: one content with two ids, or one id with two contents.
    """
    for token in fitting_added_tokens(tokens, table.n_vocab, notes):
        trained = vocab.get(token.content, token.id)
        if trained != token.id:
            raise FormatError(
                table.path, f"added token {token.content!r} has id {token.id}, and {trained} in the vocabulary"
            )
        before = table.text(token.id)
        if before is not None and before != token.content:
            raise FormatError(
                table.path, f"id {token.id} belongs to both {before!r} and the added token {token.content!r}"
            )
        table.put_added(token)


def fitting_added_tokens(tokens: list[AddedToken], n_vocab: int, notes: list[str]) -> list[AddedToken]:
    """The added tokens that have an embedding row; the others are left out with a note.

    A tokenizer that was given a padding token after training often has one token more than the model.
    """
    outside = [token for token in tokens if token.id >= n_vocab]
    if outside:
        shown = ", ".join(f"{token.id} {token.content!r}" for token in outside[:3]) + (
            ", ..." if len(outside) > 3 else ""
        )
        notes.append(f"{len(outside)} added tokens have no row in the embedding of {n_vocab} and are left out: {shown}")
    strips = [token.content for token in tokens if token.strips]
    if strips:
        notes.append(
            f"{len(strips)} added tokens strip the space around them or match whole words only, which llama.cpp "
            f"does not do: {', '.join(map(repr, strips[:3]))}"
        )
    return [token for token in tokens if token.id < n_vocab]


def too_large(path: Path, id: int, text: str, n_vocab: int) -> UnsupportedError:
    """The error for a trained token that the embedding has no row for."""
    return UnsupportedError(
        f"{path}: token {id} ({text!r}) has no row in the embedding, which has {n_vocab:,}; "
        "this tokenizer belongs to another model, or the weights were cut down without it"
    )
