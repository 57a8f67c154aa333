"""The tokenizer files of a checkpoint from a GGUF file's metadata.

tokenizer.json states what llama.cpp does with the metadata; a file that llmkit made gives back what it was made from,
as far as tokens go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.tokenizer.pretokenizer import named
from llmkit.convert.tokenizer.stages import steps_of
from llmkit.convert.tokenizer.vocabulary import TokenType
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.gguf import Value

_SPACE: Final = "▁"
_PREFIX: Final = "tokenizer.ggml."
# What llama.cpp assumes for a SentencePiece vocabulary.
_SENTENCEPIECE_IDS: Final = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
_HOLE: Final = re.compile(r"\[(?:PAD|UNUSED)\d+\]_*")
# Where llama.cpp finds these in general.name, in lower case, all special tokens but some swallow the spaces after them;
# files do not say so otherwise (llama.cpp, src/llama-vocab.cpp, "per token attributes").
_STRIPPING: Final = ("phi-3", "phi3")
_NOT_STRIPPING: Final = ("<unk>", "<s>", "<|endoftext|>")
# GGUF's key -> the name in tokenizer_config.json and config.json.
_SPECIAL: Final = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "seperator_token_id": "sep_token",
    "padding_token_id": "pad_token",
    "mask_token_id": "mask_token",
    "cls_token_id": "cls_token",
}


def tokenizer_documents(source: GGUFSource, n_context: int) -> dict[str, Any]:
    """tokenizer.json, tokenizer_config.json and generation_config.json, as values for JSON.

    Raises FormatError for metadata that contradicts itself, UnsupportedError for a kind of tokenizer that llmkit cannot
    state in tokenizer.json.
    """
    found = _Metadata(source)
    return {
        "tokenizer.json": _tokenizer(found),
        "tokenizer_config.json": _config(found, n_context),
        "generation_config.json": special_ids(source),
    }


def special_ids(source: GGUFSource) -> dict[str, int | list[int]]:
    """`bos_token_id` and so on, for config.json and generation_config.json; a list of EOS ids if there are several."""
    found = _Metadata(source)
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
    ids: dict[str, int | list[int]] = {name: id for key, name in names.items() if (id := found.id(key)) is not None}
    ends = (found.id(f"{kind}_token_id") for kind in ("eos", "eot", "eom"))
    several = list(dict.fromkeys(id for id in ends if id is not None))
    if len(several) > 1:
        ids["eos_token_id"] = several
    return ids


class _Metadata:
    """The keys `tokenizer.*` of a file, checked as they are read."""

    def __init__(self, source: GGUFSource) -> None:
        self.path = source.path
        self.values: Mapping[str, Value] = source.metadata
        self.kind = self.get("model")
        self.tokens = self._array("tokens", str)
        types = self._array("token_type", int, optional=True) or [TokenType.NORMAL] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise FormatError(self.path, f"metadata {_PREFIX}token_type: {len(types)} for {len(self.tokens)} tokens")
        self.types = types
        name = self.values.get("general.name")
        self.name = name.data.lower() if name is not None and isinstance(name.data, str) else ""

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(_PREFIX + key)
        return default if value is None else value.data

    def id(self, key: str) -> int | None:
        """A token id that is in the vocabulary."""
        id = self.get(key, _SENTENCEPIECE_IDS.get(key) if self.kind == "llama" else None)
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


def _tokenizer(found: _Metadata) -> dict[str, Any]:
    if found.kind == "gpt2":
        parts = _byte_level(found)
    elif found.kind == "llama":
        parts = _metaspace(found, _scored_merges(found), prefix=bool(found.get("add_space_prefix", True)))
    elif found.kind == "gemma4":
        parts = _metaspace(found, found.merges(), prefix=False)
    else:
        raise UnsupportedError(
            f"{found.path}: a tokenizer of the kind {found.kind!r}; llmkit writes tokenizer.json for gpt2, llama and "
            "gemma4"
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(found),
        **parts,
    }


def _added_tokens(found: _Metadata) -> list[dict[str, Any]]:
    strips = any(name in found.name for name in _STRIPPING)
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    return [
        {
            "id": id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": strips and text not in _NOT_STRIPPING,
            "normalized": False,
            "special": type in special,
        }
        for id, (text, type) in enumerate(zip(found.tokens, found.types, strict=True))
        if type in (*special, TokenType.USER_DEFINED)
    ]


def _vocab(found: _Metadata) -> dict[str, int]:
    """Every token but the holes that were filled up to the rows of the embedding."""
    return {
        text: id
        for id, (text, type) in enumerate(zip(found.tokens, found.types, strict=True))
        if not (type == TokenType.UNUSED and _HOLE.fullmatch(text))
    }


def _byte_level(found: _Metadata) -> dict[str, Any]:
    name = found.get("pre", "default")
    known = named(name) if isinstance(name, str) else None
    if known is None:
        raise UnsupportedError(f"{found.path}: llmkit does not know what the pre-tokenizer {name!r} does")
    steps = steps_of(known.stages)
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _template(found),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": known.ignore_merges,
            "vocab": _vocab(found),
            "merges": found.merges(),
        },
    }


def _metaspace(found: _Metadata, merges: list[list[str]], *, prefix: bool) -> dict[str, Any]:
    """BPE in which spaces are `▁`, with one before the text if `prefix`, and bytes for what is no token."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [{"type": "Prepend", "prepend": _SPACE}, spaces] if prefix else [spaces]
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": _template(found),
        "decoder": {"type": "Sequence", "decoders": back},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": found.text("unknown_token_id"),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": _vocab(found),
            "merges": merges,
        },
    }


def _scored_merges(found: _Metadata) -> list[list[str]]:
    """SentencePiece's: the pair whose joint token has the best score is merged first."""
    scores = found.scores()
    normal = {
        text: id
        for id, (text, type) in enumerate(zip(found.tokens, found.types, strict=True))
        if type == TokenType.NORMAL
    }
    return merges_of(normal, scores)


def merges_of(vocab: Mapping[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Every pair of tokens that make a token, those of the best one first; then by the longer left part."""
    pairs = [
        (-scores[id], id, -place, text[:place], text[place:])
        for text, id in vocab.items()
        for place in range(1, len(text))
        if text[:place] in vocab and text[place:] in vocab
    ]
    return [[left, right] for *_, left, right in sorted(pairs)]


def _template(found: _Metadata) -> dict[str, Any] | None:
    """What goes around a text: the tokens that llama.cpp adds by itself."""
    # llama.cpp's default is to add BOS where spaces are `▁`; for Gemma's kind it cannot be turned off.
    adds_first = found.kind == "gemma4" or found.get("add_bos_token", found.kind == "llama")
    first = found.text("bos_token_id") if adds_first else None
    last = found.text("eos_token_id") if found.get("add_eos_token") else None
    ids = {"bos_token_id": first, "eos_token_id": last}
    if first is None and last is None:
        if found.get("add_eos_token") is None:
            return None
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}

    def around(*sequences: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for type_id, name in enumerate(sequences):
            entries += [{"SpecialToken": {"id": first, "type_id": type_id}}] * (first is not None)
            entries.append({"Sequence": {"id": name, "type_id": type_id}})
            entries += [{"SpecialToken": {"id": last, "type_id": type_id}}] * (last is not None)
        return entries

    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A", "B"),
        "special_tokens": {
            text: {"id": text, "ids": [found.id(key)], "tokens": [text]}
            for key, text in ids.items()
            if text is not None
        },
    }


def _config(found: _Metadata, n_context: int) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": n_context}
    for key, name in _SPECIAL.items():
        if (text := found.text(key)) is not None:
            config[name] = text
    for key in ("add_bos_token", "add_eos_token"):
        if isinstance(value := found.get(key), bool):
            config[key] = value
    if isinstance(value := found.get("add_space_prefix"), bool):
        config["add_prefix_space"] = value
    config["clean_up_tokenization_spaces"] = False
    templates = {
        key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default": value.data
        for key, value in found.values.items()
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")
    }
    if list(templates) == ["default"]:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return config
