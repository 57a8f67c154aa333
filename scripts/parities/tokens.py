"""Tokens of hard texts: Hugging Face's tokenizer against llama.cpp on the converted file."""

from __future__ import annotations

from pathlib import Path

import llmkit
from tests.corpus import plain_texts


def compare_tokens(folder: Path, gguf: Path) -> list[str]:
    """The texts that the two tokenise differently; special tokens in a text are read as such by both.

    Files for llama.cpp have a vocabulary's runs of `▁` as runs of spaces, if they are added tokens (Gemma): the
    character `▁` itself is then not found in them, and texts with it are left out.
    """
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    has_runs = any(token.content == "▁▁" for token in reference.get_added_tokens_decoder().values())
    texts = [text for text in plain_texts() if not (has_runs and "▁" in text)]
    with llmkit.load(gguf, n_context=64, n_threads=1) as session:
        return [
            text
            for text in texts
            if session.tokenize(text, parse_special=True) != reference.encode(text, add_special_tokens=False).ids
        ]
