"""Lists of tokens in tiktoken's format, for models whose tokenizer is code of their own and has no tokenizer.json.

Each line is a token's bytes in base64 and its rank, which is its id. The rules are in that code, which llmkit does not
run: the class that tokenizer_config.json names says which they are.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmkit.convert.tokenizer.files import MAX_TOKENIZER_BYTES, TokenizerFiles
from llmkit.convert.tokenizer.ranked import ranked_splitter
from llmkit.convert.tokenizer.recognise import recognise
from llmkit.convert.tokenizer.splitting import KIMI, LLAMA3, QWEN2
from llmkit.convert.tokenizer.vocabulary import (
    AddedToken,
    TokenTable,
    TokenType,
    Vocabulary,
    put_added_tokens,
    too_large,
)
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.files import open_regular, read_exactly
from llmkit.protocols import TokenizerJudge


@dataclass(frozen=True, slots=True)
class RankedClass:
    """What a class splits by, and the special tokens that it puts after the ranks if no JSON file lists any."""

    pattern: str
    special: tuple[str, ...] = ()


_QWEN_SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
CLASSES: Final = {
    "QWenTokenizer": RankedClass(QWEN2, _QWEN_SPECIAL),
    "HYTokenizer": RankedClass(QWEN2),
    "ChatGLM4Tokenizer": RankedClass(LLAMA3),
    "TikTokenTokenizer": RankedClass(KIMI),
}
_MAX_TOKEN_BYTES: Final = 4096


def tiktoken_file(folder: Path) -> Path | None:
    """The list of tokens in `folder`, under one of the names that occur; None if there is none."""
    named = sorted(folder.glob("*.tiktoken"))
    for path in (*named, folder / "tiktoken.model", folder / "tokenizer.model"):
        if path.is_file() and _looks_ranked(path):
            return path
    return None


def _looks_ranked(path: Path) -> bool:
    """Whether the file begins with a line that has base64 and the number 0."""
    file, size = open_regular(path)
    with file:
        first, found, _ = read_exactly(file, min(size, 64), path).partition(b"\n")
    words = first.split()
    return bool(found) and len(words) == 2 and words[1] == b"0" and _decoded(words[0]) is not None


def _decoded(text: bytes) -> bytes | None:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None


def tiktoken_vocabulary(
    files: TokenizerFiles, path: Path, n_vocab: int, pre: str | None, judge: TokenizerJudge | None, notes: list[str]
) -> Vocabulary:
    """The vocabulary of the list in `path` and the special tokens of the JSON files; for `pre` see `recognise`.

    Raises FormatError for a damaged list, UnsupportedError for a class that llmkit does not know, or an embedding that
    is too small.
    """
    words = _read(path)
    known = _class_of(files, path)
    splitter = ranked_splitter(words, known.pattern)
    name = recognise(splitter, False, pre, judge, path, notes)
    if len(words) > n_vocab:
        raise too_large(path, n_vocab, "the first beyond it", n_vocab)
    table = TokenTable(n_vocab, path)
    for text, id in splitter.vocab.items():
        table.put(id, text, TokenType.NORMAL)
    added = files.added_tokens()
    if not added:
        added = [AddedToken(len(words) + i, text, special=True) for i, text in enumerate(known.special)]
    put_added_tokens(table, added, splitter.vocab, notes)
    texts, types, _ = table.finish(notes)
    return Vocabulary(
        model="gpt2",
        pre=name,
        texts=texts,
        types=types,
        scores=None,
        merges=tuple(f"{left} {right}" for left, right in splitter.merges),
        add_space_prefix=False,
        adds_bos=False,
        ids={token.content: token.id for token in added if token.id < n_vocab},
    )


def _class_of(files: TokenizerFiles, path: Path) -> RankedClass:
    name = files.config.get("tokenizer_class")
    if not isinstance(name, str) or name not in CLASSES:
        raise UnsupportedError(
            f"{path}: a list of tokens, which does not say how text is split, and llmkit does not know the class "
            f"{name!r} that does; it knows {', '.join(CLASSES)}. A tokenizer.json beside it would say it"
        )
    return CLASSES[name]


def _read(path: Path) -> list[bytes]:
    """The bytes of all tokens, by rank; FormatError unless the ranks count from 0 and no two tokens are the same."""
    file, size = open_regular(path)
    with file:
        if size > MAX_TOKENIZER_BYTES:
            raise FormatError(path, f"{size:,} bytes; expected at most {MAX_TOKENIZER_BYTES:,}")
        lines = read_exactly(file, size, path).splitlines()
    words: list[bytes] = []
    for number, line in enumerate(lines):
        parts = line.split()
        if not parts:
            continue
        word = _decoded(parts[0])
        if len(parts) != 2 or word is None or parts[1] != b"%d" % len(words):
            raise FormatError(path, f"line {number + 1} is {line!r:.80}, expected base64 and the rank {len(words)}")
        if not 0 < len(word) <= _MAX_TOKEN_BYTES:
            raise FormatError(path, f"line {number + 1} holds a token of {len(word)} bytes")
        words.append(word)
    if len(set(words)) < len(words):
        raise FormatError(path, "two lines hold the same token")
    return words
