"""Mistral's own tokenizer file, tekken.json, for models published without a tokenizer.json.

Format: mistral-common, tokens/tokenizers/tekken.py. The first `default_num_special_tokens` ids are special; after
them comes every entry of `vocab` at its rank, cut at `default_vocab_size`. Text is split by `pattern`, then BPE goes by
these ranks (see `ranked`).
"""

from __future__ import annotations

import binascii
from pathlib import Path
from typing import Any, Final

from llmkit.convert.tokenizer.files import MAX_TOKENIZER_BYTES, TokenizerFiles
from llmkit.convert.tokenizer.ranked import ranked_splitter
from llmkit.convert.tokenizer.recognise import recognise
from llmkit.convert.tokenizer.vocabulary import TokenTable, TokenType, Vocabulary, too_large
from llmkit.errors import FormatError
from llmkit.formats.strictjson import json_kind, read_json_object
from llmkit.protocols import TokenizerJudge

# Files up to version 7 do not list their special tokens.
_OLD_SPECIAL_TOKENS: Final = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
_KINDS: Final = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
_MAX_TOKEN_BYTES: Final = 4096


def tekken_vocabulary(
    files: TokenizerFiles, n_vocab: int, pre: str | None, judge: TokenizerJudge | None, notes: list[str]
) -> Vocabulary:
    """The vocabulary of tekken.json; for `pre` and `judge` see `recognise`.

    Raises FormatError when the file is not what mistral-common requires, UnsupportedError when the embedding is too
    small for it or llama.cpp has no pre-tokenizer for its pattern.
    """
    path = files.folder / "tekken.json"
    content = read_json_object(path, max_bytes=MAX_TOKENIZER_BYTES)
    config = content.get("config")
    if not isinstance(config, dict):
        raise FormatError(path, f"config: expected an object, found {json_kind(config)}")
    n_special = _count(config, "default_num_special_tokens", path)
    n_tokens = _count(config, "default_vocab_size", path)
    pattern = config.get("pattern")
    if not isinstance(pattern, str):
        raise FormatError(path, f"config.pattern: expected a string, found {json_kind(pattern)}")
    words = _words(content.get("vocab"), n_tokens - n_special, path)
    special = _special_tokens(content.get("special_tokens"), n_special, path)
    splitter = ranked_splitter(words, pattern)
    name = recognise(splitter, None, pre, judge, path, notes)
    if n_tokens > n_vocab:
        raise too_large(path, n_vocab, "the first beyond it", n_vocab)

    table = TokenTable(n_vocab, path)
    for id, (text, type) in enumerate(special):
        table.put(id, text, type)
    for rank, text in enumerate(splitter.vocab):
        table.put(n_special + rank, text, TokenType.NORMAL)
    texts, types, _ = table.finish(notes)
    ids = {text: id for id, (text, _) in enumerate(special)}
    return Vocabulary(
        model="gpt2",
        pre=name,
        texts=texts,
        types=types,
        scores=None,
        merges=tuple(f"{left} {right}" for left, right in splitter.merges),
        add_space_prefix=False,
        adds_bos=True,
        ids=ids,
        special={kind: ids[text] for kind, text in _KINDS.items() if text in ids},
    )


def _count(config: dict[str, Any], key: str, path: Path) -> int:
    number = config.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 24:
        raise FormatError(path, f"config.{key}: {number!r} is not a number of tokens")
    return number


def _words(vocab: object, count: int, path: Path) -> list[bytes]:
    """The bytes of the first `count` entries of `vocab`, which must start with the 256 single bytes."""
    if not isinstance(vocab, list):
        raise FormatError(path, f"vocab: expected an array, found {json_kind(vocab)}")
    if not 256 <= count <= len(vocab):
        raise FormatError(path, f"vocab has {len(vocab)} entries, config asks for {count}")
    words = []
    for rank, entry in enumerate(vocab[:count]):
        encoded = entry.get("token_bytes") if isinstance(entry, dict) else None
        if not isinstance(encoded, str) or entry.get("rank") != rank:
            raise FormatError(path, f"vocab: entry {rank} is {entry!r:.100}, expected rank {rank} and token_bytes")
        try:
            word = binascii.a2b_base64(encoded, strict_mode=True)
        except ValueError as error:
            raise FormatError(path, f"vocab: entry {rank}: token_bytes is not base64: {error}") from None
        if not 0 < len(word) <= _MAX_TOKEN_BYTES or (rank < 256 and word != bytes([rank])):
            raise FormatError(path, f"vocab: entry {rank} holds {word!r:.60}; the first 256 are the bytes themselves")
        words.append(word)
    if len(set(words)) < len(words):
        raise FormatError(path, "vocab: two entries hold the same bytes")
    return words


def _special_tokens(entries: object, count: int, path: Path) -> list[tuple[str, TokenType]]:
    """Text and type of the special tokens by id, filled up to `count`."""
    if entries is None:
        entries = [{"rank": rank, "token_str": text} for rank, text in enumerate(_OLD_SPECIAL_TOKENS[:count])]
    if not isinstance(entries, list) or len(entries) > count:
        raise FormatError(path, f"special_tokens: expected an array of at most {count} tokens")
    found = []
    for rank, entry in enumerate(entries):
        text = entry.get("token_str") if isinstance(entry, dict) else None
        if not isinstance(text, str) or entry.get("rank") != rank:
            raise FormatError(
                path, f"special_tokens: entry {rank} is {entry!r:.100}, expected rank {rank} and token_str"
            )
        control = entry.get("is_control", True) is not False
        found.append((text, TokenType.CONTROL if control else TokenType.USER_DEFINED))
    filler = [(f"<SPECIAL_{rank}>", TokenType.CONTROL) for rank in range(len(found), count)]
    return found + filler
