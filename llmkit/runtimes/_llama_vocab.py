"""A model's vocabulary through llama.cpp: text to tokens and back."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from llmkit.errors import EngineError

# llama.h: enum llama_vocab_type and llama_token_attr
_NO_VOCABULARY: Final = 0
_ATTR_CONTROL: Final = 1 << 3
_ATTR_USER_DEFINED: Final = 1 << 4
_NO_TOKEN: Final = -1


class Vocabulary:
    """Tokens of a loaded model; `lib` is `llama_cpp.llama_cpp`, `model` the model it loaded."""

    def __init__(self, lib: Any, model: Any) -> None:
        self._lib = lib
        self._vocab = lib.llama_model_get_vocab(model)
        self.has_text: bool = lib.llama_vocab_type(self._vocab) != _NO_VOCABULARY
        self.n_tokens: int = lib.llama_vocab_n_tokens(self._vocab)
        # llama.cpp ends the process if it is asked about the tokens of a model without a vocabulary.
        self.adds_bos: bool = self.has_text and lib.llama_vocab_get_add_bos(self._vocab)
        self.bos: int | None = self._special(lib.llama_vocab_bos)
        self.eos: int | None = self._special(lib.llama_vocab_eos)
        self._pieces: dict[int, bytes] = {}

    def _special(self, get: Any) -> int | None:
        token: int = get(self._vocab)
        return None if token == _NO_TOKEN else token

    def special_texts(self) -> dict[str, str]:
        """The texts that chat templates know as `bos_token`, `eos_token` and so on."""
        tokens = {
            "bos_token": self.bos,
            "eos_token": self.eos,
            "pad_token": self._special(self._lib.llama_vocab_pad),
        }
        return {name: self._text(token) for name, token in tokens.items() if token is not None}

    def _text(self, token: int) -> str:
        return self._to_piece(token, special=True).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token (any end-of-generation token, not only EOS)."""
        return self.has_text and bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        return self.has_text and bool(self._lib.llama_vocab_is_control(self._vocab, token))

    def splits_text(self, token: int) -> bool:
        """Whether the tokenizer cuts the text at this token before anything else, so that no merge crosses it."""
        attributes = self._lib.llama_vocab_get_attr(self._vocab, token)
        return bool(attributes & (_ATTR_CONTROL | _ATTR_USER_DEFINED))

    def _check_text(self) -> None:
        if not self.has_text:
            raise EngineError("this model has no tokenizer: it takes token ids and gives logits, but no text")

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; see `llmkit.runtimes.llamacpp.LlamaCppSession.tokenize`."""
        self._check_text()
        data = text.encode("utf-8", "replace")
        room = len(data) + 4
        for _ in range(2):
            buffer = (ctypes.c_int32 * room)()
            count: int = self._lib.llama_tokenize(
                self._vocab, data, len(data), buffer, room, add_special, parse_special
            )
            if count >= 0:
                return list(buffer[:count])
            room = -count
        raise EngineError(f"llama.cpp could not tokenize a text of {len(data)} bytes")

    def prompt_ids(self, text: str) -> list[int]:
        """Tokens of a prompt: special tokens in the text count, BOS comes first if the model asks for it, once only.

        EOS is never added: the text is to be continued.
        """
        ids = self.tokenize(text, parse_special=True)
        if self.adds_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included; the space that SentencePiece vocabularies put first is removed."""
        self._check_text()
        tokens = np.asarray(ids, dtype=np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        room = 8 * len(tokens) + 16
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            count: int = self._lib.llama_detokenize(self._vocab, pointer, len(tokens), buffer, room, False, True)
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", "replace")
            room = -count
        raise EngineError(f"llama.cpp could not turn {len(tokens)} tokens into text")

    def piece(self, token: int) -> bytes:
        """Bytes that a generated token adds to the text; control tokens add none."""
        if not self.has_text:
            return b""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._to_piece(token, special=False)
        return known

    def _to_piece(self, token: int, *, special: bool) -> bytes:
        room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            count: int = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count
        raise EngineError(f"llama.cpp could not turn token {token} into text")
