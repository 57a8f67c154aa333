"""What a GGUF file says about its vocabulary, checked as it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.tokenizer.vocabulary import TokenType
from llmkit.errors import FormatError
from llmkit.formats.gguf import Value

_PREFIX: Final = "tokenizer.ggml."
_HOLE: Final = re.compile(r"\u2581?\[(?:PAD|UNUSED)\d+\]_*")
# The ids that llama.cpp takes for granted (llama_vocab::impl::load).
_ASSUMED: Final = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
    "bert": {
        "bos_token_id": 101,
        "unknown_token_id": 100,
        "seperator_token_id": 102,
        "padding_token_id": 0,
        "mask_token_id": 103,
    },
}
# Where llama.cpp finds these in general.name, in lower case, all special tokens but some swallow the spaces after them;
# files do not say so otherwise (llama.cpp, src/llama-vocab.cpp, "per token attributes").
_STRIPPING: Final = ("phi-3", "phi3")
_NOT_STRIPPING: Final = ("<unk>", "<s>", "<|endoftext|>")


class StatedVocabulary:
    """The keys `tokenizer.*` of a file, checked as they are read."""

    def __init__(self, source: GGUFSource) -> None:
        self.path = source.path
        self.values: Mapping[str, Value] = source.metadata
        self.model = self.get("model")
        self.tokens = self._array("tokens", str)
        types = self._array("token_type", int, optional=True) or [TokenType.NORMAL] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise FormatError(self.path, f"metadata {_PREFIX}token_type: {len(types)} for {len(self.tokens)} tokens")
        self.types = types
        name = self.values.get("general.name")
        text = name.data.lower() if name is not None and isinstance(name.data, str) else ""
        self._strips = any(part in text for part in _STRIPPING)

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(_PREFIX + key)
        return default if value is None else value.data

    def id(self, key: str) -> int | None:
        """A token id that is in the vocabulary; what the file does not state is as llama.cpp has it."""
        id = self.get(key, _ASSUMED.get(self.model, {}).get(key) if isinstance(self.model, str) else None)
        return id if isinstance(id, int) and 0 <= id < len(self.tokens) else None

    def text(self, key: str) -> str | None:
        id = self.id(key)
        return None if id is None else self.tokens[id]

    def _array(self, key: str, element: type, *, optional: bool = False) -> list[Any]:
        value = self.get(key)
        if value is None and optional:
            return []
        if not isinstance(value, tuple | list) or not all(isinstance(entry, element) for entry in value):
            raise FormatError(self.path, f"metadata {_PREFIX}{key} must be an array of {element.__name__}")
        return list(value)

    def merges(self) -> list[list[str]]:
        """Pairs of tokens; one that is no pair is left for the reader to refuse."""
        pairs = [text.partition(" ")[::2] for text in self._array("merges", str)]
        return [list(pair) for pair in pairs]

    def scores(self) -> list[float]:
        scores = self._array("scores", float)
        if len(scores) != len(self.tokens):
            raise FormatError(self.path, f"metadata {_PREFIX}scores: {len(scores)} for {len(self.tokens)} tokens")
        return scores

    def strips(self, text: str) -> bool:
        """Whether a special token swallows the spaces after it."""
        return self._strips and text not in _NOT_STRIPPING

    def is_hole(self, id: int) -> bool:
        """Whether a token was put there only because the embedding has more rows than there are tokens."""
        return self.types[id] == TokenType.UNUSED and _HOLE.fullmatch(self.tokens[id]) is not None

    def vocab(self) -> dict[str, int]:
        """Every token but the holes."""
        return {text: id for id, text in enumerate(self.tokens) if not self.is_hole(id)}
