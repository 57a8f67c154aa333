"""Tokens of hard texts: Hugging Face's tokenizer against llama.cpp on the converted file."""

from __future__ import annotations

from pathlib import Path

import llmkit
from tests.corpus import plain_texts


def compare_tokens(folder: Path, gguf: Path) -> list[str]:
    """The texts that the two tokenise differently."""
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with llmkit.load(gguf, n_context=64, n_threads=1) as session:
        return [
            text
            for text in plain_texts()
            if session.tokenize(text) != reference.encode(text, add_special_tokens=False).ids
        ]
