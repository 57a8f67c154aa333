"""Hard texts for tokenizers, written or generated: those of the package, and random ones."""

from __future__ import annotations

import random
import unicodedata

from llmkit.convert.tokenizer.hardtexts import LONG, hard_texts


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of characters from all over Unicode and from the awkward corners, in changing mixtures."""
    rng = random.Random(seed)
    assigned = [
        chr(code) for code in range(0x20, 0x30000, 7) if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co")
    ]
    corners = list(" \n\t\r'`\"sSmtdrevlL09.,;-_/\\ÅéßИ漢か한ا한\u0301\u200d😀🏽²½Ⅷ\u00a0\u3000▁Ġ")
    phrases = "the a I'm we'll 2024 def return 東京 мир été straße  \n\n 3.14 <b> {} // ;"
    texts = []
    for _ in range(count):
        pools = rng.choices([assigned, corners, phrases.split(" ")], weights=[1, 3, 2], k=rng.randint(1, 3))
        texts.append(
            "".join(rng.choice(rng.choice(pools)) + rng.choice(["", "", " "]) for _ in range(rng.randint(1, 60)))
        )
    return texts


def plain_texts() -> list[str]:
    """Every text above and some random ones; no special tokens but for lookalikes."""
    return [
        "",
        *hard_texts(),
        *LONG,
        *random_texts(200),
    ]


def texts_with(tokens: list[str]) -> list[str]:
    """Texts with the given special tokens at the start, inside, doubled, and glued to words."""
    texts = []
    for token in tokens:
        texts += [
            token,
            f"{token}Hello",
            f"Hello{token}",
            f"Hello {token} world",
            f"{token}{token}",
            f" {token} \n{token}\n",
        ]
    if tokens:
        joined = "\n".join(f"{token}user\nIt's {i}  ok" for i, token in enumerate(tokens))
        texts += [joined, "".join(tokens), "x".join(tokens)]
    return texts
