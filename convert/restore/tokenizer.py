"""The tokenizer files of a checkpoint from a GGUF file's metadata.

tokenizer.json states what llama.cpp does with the metadata; a file that llmkit made gives back what it was made from,
as far as tokens go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from llmkit.convert.gguf_source import GGUFSource
from llmkit.convert.restore.encoders import unigram, wordpiece
from llmkit.convert.restore.vocabulary import StatedVocabulary
from llmkit.convert.tokenizer.pretokenizer import named
from llmkit.convert.tokenizer.stages import steps_of
from llmkit.convert.tokenizer.vocabulary import TokenType
from llmkit.errors import UnsupportedError

_SPACE: Final = "▁"
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
    """tokenizer.json and tokenizer_config.json, as values for JSON.

    Raises FormatError for metadata that contradicts itself, UnsupportedError for a kind of tokenizer that llmkit cannot
    state in tokenizer.json.
    """
    found = StatedVocabulary(source)
    return {
        "tokenizer.json": _tokenizer(found),
        "tokenizer_config.json": _config(found, n_context),
    }


def special_ids(source: GGUFSource) -> dict[str, int | list[int]]:
    """`bos_token_id` and so on, for config.json and generation_config.json; a list of EOS ids if there are several."""
    found = StatedVocabulary(source)
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
    ids: dict[str, int | list[int]] = {name: id for key, name in names.items() if (id := found.id(key)) is not None}
    ends = (found.id(f"{kind}_token_id") for kind in ("eos", "eot", "eom"))
    several = list(dict.fromkeys(id for id in ends if id is not None))
    if len(several) > 1:
        ids["eos_token_id"] = several
    return ids


def _tokenizer(found: StatedVocabulary) -> dict[str, Any]:
    kind = found.model
    makers = {"gpt2": _byte_level, "llama": _scored, "gemma4": _ranked, "bert": wordpiece, "t5": unigram}
    if kind not in makers:
        raise UnsupportedError(
            f"{found.path}: a tokenizer of the kind {kind!r}; llmkit writes tokenizer.json for {', '.join(makers)}"
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(found),
        "post_processor": _template(found),
        **makers[kind](found),
    }


def _added_tokens(found: StatedVocabulary) -> list[dict[str, Any]]:
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    return [
        {
            "id": id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": found.strips(text),
            "normalized": False,
            "special": type in special,
        }
        for id, (text, type) in enumerate(zip(found.tokens, found.types, strict=True))
        if type in (*special, TokenType.USER_DEFINED)
    ]


def _byte_level(found: StatedVocabulary) -> dict[str, Any]:
    name = found.get("pre", "default")
    known = named(name) if isinstance(name, str) else None
    if known is None:
        raise UnsupportedError(f"{found.path}: llmkit does not know what the pre-tokenizer {name!r} does")
    steps = steps_of(known.stages)
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
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
            "vocab": found.vocab(),
            "merges": found.merges(),
        },
    }


def _scored(found: StatedVocabulary) -> dict[str, Any]:
    """SentencePiece's BPE: the pair whose joint token has the best score is merged first."""
    scores = found.scores()
    normal = {
        text: id
        for id, (text, type) in enumerate(zip(found.tokens, found.types, strict=True))
        if type == TokenType.NORMAL
    }
    return _metaspace(found, merges_of(normal, scores), prefix=bool(found.get("add_space_prefix", True)))


def _ranked(found: StatedVocabulary) -> dict[str, Any]:
    """Gemma's kind of it, which states its merges."""
    return _metaspace(found, found.merges(), prefix=False)


def _metaspace(found: StatedVocabulary, merges: list[list[str]], *, prefix: bool) -> dict[str, Any]:
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
            "vocab": found.vocab(),
            "merges": merges,
        },
    }


def merges_of(vocab: Mapping[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Every pair of tokens that make a token, those of the best one first; then by the longer left part."""
    pairs = [
        (-scores[id], id, -place, text[:place], text[place:])
        for text, id in vocab.items()
        for place in range(1, len(text))
        if text[:place] in vocab and text[place:] in vocab
    ]
    return [[left, right] for *_, left, right in sorted(pairs)]


def _template(found: StatedVocabulary) -> dict[str, Any] | None:
    """What goes around a text and between two: the tokens that llama.cpp adds by itself."""
    # llama.cpp's default is to add BOS where spaces are `▁`; for Gemma's kind it cannot be turned off.
    always = found.model == "bert"
    adds_first = always or found.model == "gemma4" or bool(found.get("add_bos_token", found.model == "llama"))
    adds_last = always or bool(found.get("add_eos_token"))
    first = found.id("bos_token_id") if adds_first else None
    last = found.id("seperator_token_id" if always else "eos_token_id") if adds_last else None
    if first is None and last is None:
        if found.get("add_eos_token") is None:
            return None
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    separator = found.id("seperator_token_id")
    if found.get("add_sep_token"):
        between = [last, last if separator is None else separator]
    else:
        between = [last, first if separator is None else None]
    n_types = found.get("token_type_count", 2)

    def template(*entries: str | int | None) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        type_id = 0
        for entry in entries:
            if entry == "B":
                type_id = min(1, n_types - 1)
            if isinstance(entry, str):
                parts.append({"Sequence": {"id": entry, "type_id": type_id}})
            elif entry is not None:
                parts.append({"SpecialToken": {"id": found.tokens[entry], "type_id": type_id}})
        return parts

    return {
        "type": "TemplateProcessing",
        "single": template(first, "A", last),
        "pair": template(first, "A", *between, "B", last),
        "special_tokens": {
            found.tokens[id]: {"id": found.tokens[id], "ids": [id], "tokens": [found.tokens[id]]}
            for id in (first, last, *between)
            if id is not None
        },
    }


def _config(found: StatedVocabulary, n_context: int) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": n_context}
    for key, name in _SPECIAL.items():
        if (text := found.text(key)) is not None:
            config[name] = text
    n_types = found.get("token_type_count")
    if n_types is not None and "bos_token" in config:
        config["cls_token"] = config["bos_token"]  # of encoders
    # Without a word transformers would hand decoders token types, which they do not take.
    types = ["token_type_ids"] if n_types is not None and n_types > 1 else []
    config["model_input_names"] = ["input_ids", *types, "attention_mask"]
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
