"""Which tokens are scored, and by what comes before them."""

from __future__ import annotations

import pytest

from llmkit.errors import EvaluationError
from llmkit.evaluate.windows import cut

BOS = 1000


@pytest.mark.parametrize("n", [16, 17, 23, 24, 25, 100])
@pytest.mark.parametrize("bos", [None, BOS])
def test_sliding_scores_every_token_once(n: int, bos: int | None) -> None:
    windows = cut(range(n), 16, "sliding", bos)
    scored = [token for window in windows for token in window.ids[window.first :]]
    assert scored == list(range(0 if bos is not None else 1, n))
    for number, window in enumerate(windows):
        assert len(window.ids) == 16
        assert (window.ids[0] == BOS) == (bos is not None)
        text = [token for token in window.ids if token != BOS]
        assert text == list(range(text[0], text[-1] + 1))
        if number:
            assert window.first >= 8  # half a window before every token


@pytest.mark.parametrize("bos", [None, BOS])
def test_llama_cpp_scores_second_halves(bos: int | None) -> None:
    windows = cut(range(70), 16, "llama.cpp", bos)
    assert len(windows) == 4
    whole = list(range(70)) if bos is None else [BOS, *range(70)]
    for number, window in enumerate(windows):
        chunk = whole[16 * number : 16 * number + 16]
        assert list(window.ids[1:]) == chunk[1:]
        assert window.ids[0] == (chunk[0] if bos is None else BOS)
        assert window.n_scored == 16 - 1 - 8


def test_fewer_windows_on_demand() -> None:
    assert len(cut(range(200), 16, "sliding", None, 3)) == 3


@pytest.mark.parametrize(
    ("n", "size", "protocol", "message"),
    [
        (0, 16, "sliding", "the text is empty"),
        (15, 16, "sliding", "the text has 15 tokens, and 16 are needed: give a longer text, or shorter windows"),
        (31, 16, "llama.cpp", "the text has 31 tokens, and 32 are needed"),
        (100, 4, "sliding", "windows of 4 tokens are too short"),
        (100, 16, "whole", "protocol 'whole'; known: sliding, llama.cpp"),
    ],
)
def test_what_cannot_be(n: int, size: int, protocol: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        cut(range(n), size, protocol, None)
