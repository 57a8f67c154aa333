"""Texts that llama.cpp tokenises otherwise than Hugging Face's `tokenizers`, whatever a file says."""

from __future__ import annotations

import unicodedata
from typing import Final

# Hugging Face drops these as control characters (or splits at the last), llama.cpp takes them otherwise.
_ODD_SPACES: Final = frozenset("\x0b\x0c\x1c\x1d\x1e\x1f\x85")
_LONGEST_WORD: Final = 100  # characters; longer words are unknown to WordPiece


def wordpiece_differs(text: str, *, strips: bool = True, lowercases: bool = True) -> bool:
    """Whether llama.cpp's WordPiece may split `text` otherwise than BERT's.

    Words of more than 100 characters; its own mark of a word's beginning; where accents are stripped, all marks go and
    letters that decompose into several keep the first only; `İ` in lower case is two characters; punctuation and marks
    that Unicode got after its version 3.2, which tables of different age know or do not know.
    """
    return (
        "▁" in text
        or any(len(word) > _LONGEST_WORD for word in text.split())
        or any(
            character in _ODD_SPACES
            or (strips and _loses_letters(character))
            or (lowercases and len(character.lower()) > 1)
            or _is_recent(character)
            for character in text
        )
    )


def _loses_letters(character: str) -> bool:
    categories = [unicodedata.category(part) for part in unicodedata.normalize("NFD", character)]
    return "Mc" in categories or "Me" in categories or sum(category != "Mn" for category in categories) > 1


def _is_recent(character: str) -> bool:
    is_new = unicodedata.ucd_3_2_0.category(character) == "Cn"
    return is_new and unicodedata.category(character)[0] in "PMC"


def unigram_differs(text: str) -> bool:
    """Whether Hugging Face may normalise `text` otherwise than SentencePiece and llama.cpp do.

    It looks up whole grapheme clusters in SentencePiece's rules, they look up the longest run of characters.
    """
    return any(
        character in _ODD_SPACES
        or unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")
        or "\u1100" <= character <= "\u11ff"  # letters of Korean, which make one syllable
        for character in text
    )
