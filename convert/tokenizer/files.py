"""Finding and reading the tokenizer files of a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmkit.convert.tokenizer.vocabulary import AddedToken
from llmkit.errors import FormatError
from llmkit.formats.strictjson import json_kind, read_json_object

# The largest vocabularies in use (262,144 tokens) take 35 MB as tokenizer.json.
MAX_TOKENIZER_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The JSON files of a checkpoint that concern its tokenizer; {} or None for those it does not have."""

    folder: Path
    tokenizer: dict[str, Any] | None  # tokenizer.json
    config: dict[str, Any]  # tokenizer_config.json
    special_tokens_map: dict[str, Any]
    generation_config: dict[str, Any]
    added_tokens_json: dict[str, Any]
    tokenizer_name: str = "tokenizer.json"  # of the file that `tokenizer` comes from

    @property
    def tokenizer_json(self) -> Path:
        return self.folder / self.tokenizer_name

    @property
    def tokenizer_config(self) -> Path:
        return self.folder / "tokenizer_config.json"

    def added_tokens(self) -> list[AddedToken]:
        """All added tokens by ascending id.

        Of added_tokens.json, tokenizer.json and tokenizer_config.json the later wins, as in transformers.
        Raises FormatError for entries that are no tokens and for two contents under one id in one file.
        """
        found: dict[int, AddedToken] = {}
        path = self.folder / "added_tokens.json"
        for content, id in self.added_tokens_json.items():
            found[id] = AddedToken(token_id(id, path, content), content, special=False)
        if self.tokenizer is not None:
            entries = self.tokenizer.get("added_tokens") or []
            if not isinstance(entries, list):
                raise FormatError(self.tokenizer_json, f"added_tokens: expected an array, found {json_kind(entries)}")
            seen: dict[int, str] = {}
            for entry in entries:
                token = _added_token(entry, entry.get("id") if isinstance(entry, dict) else None, self.tokenizer_json)
                if seen.setdefault(token.id, token.content) != token.content:
                    raise FormatError(
                        self.tokenizer_json,
                        f"added_tokens: id {token.id} belongs to both {seen[token.id]!r} and {token.content!r}",
                    )
                found[token.id] = token
        decoder = self.config.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict):
            raise FormatError(self.tokenizer_config, "added_tokens_decoder: expected an object")
        for key, entry in decoder.items():
            if not key.isascii() or not key.isdigit() or len(key) > 10:
                raise FormatError(self.tokenizer_config, f"added_tokens_decoder: {key!r} is not a token id")
            token = _added_token(entry, int(key), self.tokenizer_config)
            found[token.id] = token
        return [found[id] for id in sorted(found)]


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read what is there; FormatError for a file that is no JSON object."""

    def read(name: str, max_bytes: int = 16 << 20) -> dict[str, Any] | None:
        path = folder / name
        return read_json_object(path, max_bytes=max_bytes) if path.is_file() else None

    return TokenizerFiles(
        folder=folder,
        tokenizer=read("tokenizer.json", MAX_TOKENIZER_BYTES),
        config=read("tokenizer_config.json") or {},
        special_tokens_map=read("special_tokens_map.json") or {},
        generation_config=read("generation_config.json") or {},
        added_tokens_json=read("added_tokens.json") or {},
    )


def token_id(value: object, path: Path, token: str) -> int:
    """`value` as a token id; FormatError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise FormatError(path, f"token {token!r}: {value!r} is not a token id")
    return value


def token_content(entry: object) -> str | None:
    """The text of a token given as a string or as an object with `content`, as both spellings occur."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def steps(step: object, key: str) -> Iterator[dict[str, Any]]:
    """A step of a tokenizer.json (normaliser, pre-tokenizer, post-processor), or the steps of a Sequence in order.

    `key` is where a Sequence holds its steps.
    """
    if isinstance(step, dict):
        if step.get("type") == "Sequence":
            inner = step.get(key)
            for part in inner if isinstance(inner, list) else []:
                yield from steps(part, key)
        else:
            yield step


def _added_token(entry: object, id: object, path: Path) -> AddedToken:
    content = token_content(entry)
    if not isinstance(entry, dict) or content is None:
        raise FormatError(path, f"added token {id!r}: expected an object with a content, found {entry!r:.80}")
    return AddedToken(
        id=token_id(id, path, content),
        content=content,
        special=entry.get("special") is True,
        strips=any(entry.get(key) is True for key in ("lstrip", "rstrip", "single_word")),
    )
