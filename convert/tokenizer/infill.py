"""Tokens for filling in the middle (FIM) of a text, of models that were trained for it.

They are known by their texts, which each family writes its own way. llama.cpp finds some of them itself; stated in the
file they are there for every reader. It ends generation at the last three kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Before, after and in the middle: a vocabulary is one for infill if it has all three of a row.
_MARKERS: Final = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<PRE>", "<SUF>", "<MID>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM-4.5
    ("<|prefix|>", "<|suffix|>", "<|middle|>"),  # Falcon-H1
)
_OTHERS: Final = {
    "fim_pad": ("<|fim_pad|>", "<fim_pad>", "<fim-pad>"),
    "fim_rep": ("<|repo_name|>", "<repo_name>", "<reponame>"),
    "fim_sep": ("<|file_sep|>", "<file_sep>", "<|file_separator|>"),
    "eot": ("▁<EOT>",),
}


def infill_tokens(ids: Mapping[str, int]) -> dict[str, int]:
    """fim_pre, fim_suf, fim_mid, and what belongs to them, as far as they are there; {} for a model without infill.

    `ids` finds a token's id by its text.
    """
    for markers in _MARKERS:
        if all(text in ids for text in markers):
            found = dict(zip(("fim_pre", "fim_suf", "fim_mid"), map(ids.__getitem__, markers), strict=True))
            for kind, texts in _OTHERS.items():
                known = [ids[text] for text in texts if text in ids]
                if known:
                    found[kind] = known[0]
            return found
    return {}
