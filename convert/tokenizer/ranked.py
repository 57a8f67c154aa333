"""BPE by ranks of tokens (tiktoken's kind) in the terms of a tokenizer.json, which ranks pairs.

In a word the neighbours whose joint bytes are the token of lowest rank are merged first. So every pair that makes a
token becomes a merge, in the order of the tokens made.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.convert.tokenizer.bytelevel import spelled
from llmkit.convert.tokenizer.stages import Splitter


def ranked_splitter(words: Sequence[bytes], pattern: str) -> Splitter:
    """The tokenizer whose token of rank i is `words[i]`, the single bytes among them, and which splits by `pattern`."""
    ranks = {word: rank for rank, word in enumerate(words)}
    texts = list(map(spelled, words))
    merges = []
    for word in words:
        pairs = []
        for at in range(1, len(word)):
            left, right = ranks.get(word[:at]), ranks.get(word[at:])
            if left is not None and right is not None:
                pairs.append((left, right))
        merges += [(texts[left], texts[right]) for left, right in sorted(pairs)]
    return Splitter(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        vocab={text: rank for rank, text in enumerate(texts)},
        merges=merges,
        ignore_merges=True,
    )
