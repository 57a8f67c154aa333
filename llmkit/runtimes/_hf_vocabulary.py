"""A checkpoint's own tokenizer.json, run by Hugging Face's `tokenizers`: the same tokens as in training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llmkit.errors import DependencyError, EngineError, FormatError
from llmkit.formats.strictjson import read_json_object

_MAX_BYTES: Final = 256 << 20
_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")


class HfVocabulary:
    """Implements `llmkit.runtimes._session.Vocabulary`.

    folder: has tokenizer.json and, if there is one, tokenizer_config.json. n_tokens: rows of the model's logits. ends:
    tokens that end an answer.
    """

    def __init__(self, folder: Path, *, n_tokens: int, ends: frozenset[int]) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise DependencyError("tokenizers", "ort", "running this model") from error
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise FormatError(path, "is missing, and the model cannot be given text without it")
        content = read_json_object(path, max_bytes=_MAX_BYTES)
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            raise EngineError(f"{path}: Hugging Face's tokenizers does not run this tokenizer: {error}") from error
        config_path = folder / "tokenizer_config.json"
        self.config: dict[str, Any] = read_json_object(config_path) if config_path.is_file() else {}
        self.n_tokens = n_tokens
        self._ends = ends
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = frozenset(id for id, token in added.items() if token.special)
        self._has_bytes = _has_byte_level(content.get("decoder"))
        self.bos, self.eos = self._id_of("bos_token"), self._id_of("eos_token")
        self._adds_bos = self.bos is not None and self.tokenize("", add_special=True)[:1] == [self.bos]
        self._pieces: dict[int, bytes] = {}

    def _text_of(self, key: str) -> str | None:
        found = self.config.get(key)
        if isinstance(found, Mapping):
            found = found.get("content")
        return found if isinstance(found, str) else None

    def _id_of(self, key: str) -> int | None:
        text = self._text_of(key)
        found: int | None = None if text is None else self._tokenizer.token_to_id(text)
        return found

    def special_texts(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {name: text for name in names if (text := self._text_of(name)) is not None}

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def is_control(self, token: int) -> bool:
        return token in self._special

    def splits_text(self, token: int) -> bool:
        return token in self._added

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        self._tokenizer.encode_special_tokens = not parse_special
        text = text.encode("utf-8", "replace").decode()
        return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)

    def prompt_ids(self, text: str) -> list[int]:
        ids = self.tokenize(text, parse_special=True)
        if self._adds_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def piece(self, token: int) -> bytes:
        """Bytes that a generated token adds to the text; special tokens add none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token)
        return known

    def _piece(self, token: int) -> bytes:
        text: str | None = self._tokenizer.id_to_token(token)
        if text is None or token in self._special:
            return b""
        if token in self._added:
            return text.encode()
        if self._has_bytes:
            return bytes(_BYTE_OF[character] for character in text if character in _BYTE_OF)
        found = _BYTE.fullmatch(text)
        return bytes([int(found[1], 16)]) if found else text.replace("\u2581", " ").encode("utf-8", "replace")


def _has_byte_level(decoder: object) -> bool:
    """Whether tokens are spelled in the characters that stand for bytes since GPT-2."""
    if not isinstance(decoder, Mapping):
        return False
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    return any(isinstance(step, Mapping) and step.get("type") == "ByteLevel" for step in steps or ())


def _byte_characters() -> dict[str, int]:
    """The characters by which byte-level vocabularies spell bytes: those that can be seen stand for themselves."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF: Final = _byte_characters()
