"""The tokenizers of encoders in tokenizer.json: WordPiece and Unigram, as llama.cpp computes them."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

from llmkit.convert.restore.vocabulary import StatedVocabulary
from llmkit.convert.tokenizer.vocabulary import ADDED_SCORE, TokenType
from llmkit.errors import FormatError

_SPACE: Final = "▁"
_CONTINUES: Final = "##"
_MAX_CHARACTERS: Final = 100  # BERT's; llama.cpp has no limit


def wordpiece(found: StatedVocabulary) -> dict[str, Any]:
    """WordPiece as BERT has it. Files have `▁` before tokens that begin a word, and nothing before those that go on."""
    lowercase = found.get("normalizer.lowercase", True)
    vocab: dict[str, int] = {}
    for id, text in enumerate(found.tokens):
        if not found.is_hole(id):
            vocab.setdefault(_as_stored(text, found.types[id]), id)
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": found.get("normalizer.strip_accents"),
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": _CONTINUES, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": found.text("unknown_token_id") or "[UNK]",
            "continuing_subword_prefix": _CONTINUES,
            "max_input_chars_per_word": _MAX_CHARACTERS,
            "vocab": vocab,
        },
    }


def _as_stored(text: str, type: int) -> str:
    """A token as WordPiece has it; llama.cpp's own converter leaves tokens in brackets as they are."""
    if type != TokenType.NORMAL or (text.startswith("[") and text.endswith("]") and len(text) > 1):
        return text
    return text.removeprefix(_SPACE) if text.startswith(_SPACE) else _CONTINUES + text


def unigram(found: StatedVocabulary) -> dict[str, Any]:
    """Unigram with SentencePiece's normalisation, which the file has as SentencePiece does."""
    unknown = found.id("unknown_token_id")
    if unknown is None:
        unknown = next((id for id, type in enumerate(found.types) if type == TokenType.UNKNOWN), None)
    if unknown is None:
        raise FormatError(found.path, "metadata tokenizer.ggml.unknown_token_id is missing, which Unigram needs")
    joins, adds_space = found.get("remove_extra_whitespaces", False), found.get("add_space_prefix", True)
    steps: list[dict[str, Any]] = []
    if charsmap := found.get("precompiled_charsmap"):
        steps.append({"type": "Precompiled", "precompiled_charsmap": b64encode(bytes(charsmap)).decode()})
    if joins:
        steps += [
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    metaspace = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always" if adds_space else "never"}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": {**metaspace, "split": True},
        "decoder": {**metaspace, "split": True},
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": _pieces(found, unknown), "byte_fallback": False},
    }


def _pieces(found: StatedVocabulary, unknown: int) -> list[list[Any]]:
    """The tokens that Unigram splits text into, with their scores, up to the last that is not an added one.

    The least score counts, since that of unknown characters follows from it; a hole among the tokens has it, and a text
    that never occurs, for spaces are `▁` then.
    """
    scores = found.scores()  # as they are: in other digits, splits of nearly the same sum would change places
    added = (TokenType.CONTROL, TokenType.USER_DEFINED)
    last = max(
        id
        for id, type in enumerate(found.types)
        if id == unknown or not (found.is_hole(id) or (type in added and scores[id] == ADDED_SCORE))
    )
    least = min(score for id, score in enumerate(scores[: last + 1]) if not found.is_hole(id))
    return [
        [f" {text}", least] if found.is_hole(id) else [text, scores[id]]
        for id, text in enumerate(found.tokens[: last + 1])
    ]
