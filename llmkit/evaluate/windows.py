"""Cutting the tokens of a text into windows, of which each is scored in part.

Two protocols. `sliding`: windows overlap by half, and every token is scored once, with at least half a window before it
where the text has that much; the beginning-of-text token opens every window, and where the model wants none, the text's
first token is not scored. `llama.cpp`: as llama-perplexity does (tools/perplexity/perplexity.cpp), windows follow one
another, the beginning-of-text token takes the place of the first token of each, and the second half is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llmkit.errors import EvaluationError

PROTOCOLS: Final = ("sliding", "llama.cpp")
DEFAULT_SIZE: Final = 512
MIN_SIZE: Final = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Token `ids` that pass a model, of which those from `first` on are scored by what comes before them."""

    ids: Sequence[int]
    first: int

    @property
    def n_scored(self) -> int:
        return len(self.ids) - self.first


def cut(ids: Sequence[int], size: int, protocol: str, bos: int | None, most: int | None = None) -> list[Window]:
    """The windows of a text.

    ids: its tokens, without special ones. size: tokens of a window. bos: the token that opens windows, None for none.
    most: how many windows to take.

    Raises EvaluationError for a text of too few tokens, and for settings that cannot be.
    """
    if protocol not in PROTOCOLS:
        raise EvaluationError(f"protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    if size < MIN_SIZE:
        raise EvaluationError(f"windows of {size} tokens are too short: at least {MIN_SIZE} are needed (-c, context)")
    if not ids:
        raise EvaluationError("the text is empty: there are no tokens to score")
    windows = _following(ids, size, bos) if protocol == "llama.cpp" else _sliding(ids, size, bos)
    return windows if most is None else windows[:most]


def _following(ids: Sequence[int], size: int, bos: int | None) -> list[Window]:
    # llama.cpp tokenises the text with its beginning-of-text token.
    whole = list(ids) if bos is None else [bos, *ids]
    if len(whole) < 2 * size:
        raise _too_short(len(whole), 2 * size)
    windows = []
    for start in range(0, len(whole) - size + 1, size):
        chunk = whole[start : start + size]
        windows.append(Window(chunk if bos is None else [bos, *chunk[1:]], size // 2 + 1))
    return windows


def _sliding(ids: Sequence[int], size: int, bos: int | None) -> list[Window]:
    opening = [] if bos is None else [bos]
    room = size - len(opening)
    if len(ids) < room:
        raise _too_short(len(ids), room)
    windows = [Window([*opening, *ids[:room]], 1)]
    end = room
    while end < len(ids):
        stop = min(end + size // 2, len(ids))
        windows.append(Window([*opening, *ids[stop - room : stop]], size - (stop - end)))
        end = stop
    return windows


def _too_short(found: int, needed: int) -> EvaluationError:
    return EvaluationError(
        f"the text has {found:,} tokens, and {needed:,} are needed: give a longer text, or shorter windows "
        "(-c, context)"
    )
