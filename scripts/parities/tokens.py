"""Tokens of hard texts: Hugging Face's tokenizer against llama.cpp on the converted file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import llmkit
from tests.corpus import plain_texts
from tests.tokenizer_differences import unigram_differs, wordpiece_differs

# Texts that llama.cpp cannot but tokenise differently, by `tiny`'s tokenizer; a note tells the user of these.
DIFFERENT: Final[dict[str, Callable[[str], bool]]] = {"minilm": wordpiece_differs, "unigram": unigram_differs}


def compare_tokenizers(folder: Path, other: Path, tokenizer: str) -> list[str]:
    """The texts that the tokenizer.json of one folder tokenises differently from that of another.

    Without those that llama.cpp tokenises otherwise too: a file for it does not say how Hugging Face did.
    """
    first, second = _reference(folder), _reference(other)
    differs = DIFFERENT.get(tokenizer)
    return [
        text
        for text in _texts(first)
        if not (differs and differs(text)) and first.encode(text).ids != second.encode(text).ids
    ]


def compare_tokens(folder: Path, gguf: Path, tokenizer: str, *, special: bool = False) -> list[str]:
    """The texts that the two tokenise differently; special tokens that are spelled out in a text count as such.

    special: with the special tokens around a text too.
    """
    reference = _reference(folder)
    differs = DIFFERENT.get(tokenizer)
    with llmkit.load(gguf, n_context=64, n_threads=1) as session:
        return [
            text
            for text in _texts(reference)
            if not (differs and differs(text))
            and session.tokenize(text, add_special=special, parse_special=True)
            != reference.encode(text, add_special_tokens=special).ids
        ]


def _reference(folder: Path) -> Any:
    from tokenizers import Tokenizer

    reference: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    return reference


def _texts(reference: Any) -> list[str]:
    """Hard texts that tokenizers can be compared by.

    Files for llama.cpp have a vocabulary's runs of `▁` as runs of spaces, if they are added tokens (Gemma): the
    character `▁` itself is then not found in them, and texts with it are left out.
    """
    has_runs = any(token.content == "▁▁" for token in reference.get_added_tokens_decoder().values())
    return [text for text in plain_texts() if not (has_runs and "▁" in text)]
