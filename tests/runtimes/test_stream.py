"""Bytes of tokens become text: whole characters, no stop strings."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.runtimes._stream import TextStream

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
cuts = st.lists(st.integers(0, 160), max_size=20)


def run(data: bytes, at: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """What comes out if `data` arrives cut at these places."""
    stream = TextStream(stop)
    edges = sorted({0, len(data), *(place for place in at if place < len(data))})
    pieces = [stream.feed(data[start:end]) for start, end in pairwise(edges)]
    return [*pieces, stream.finish()], stream


@given(text=texts, at=cuts)
def test_text_arrives_whole_however_it_is_cut(text: str, at: list[int]) -> None:
    pieces, stream = run(text.encode(), at)
    assert "".join(pieces) == text
    assert not stream.stopped


@given(before=texts, stop=st.text("ab\n<é🎉", min_size=1, max_size=5), after=texts, at=cuts)
def test_stop_string_ends_the_text_however_it_is_cut(before: str, stop: str, after: str, at: list[int]) -> None:
    text = before + stop + after
    pieces, stream = run(text.encode(), at, (stop,))
    assert "".join(pieces) == text[: text.index(stop)]
    assert stream.stopped


@given(text=st.text("ab", max_size=30), stops=st.lists(st.text("ab", min_size=1, max_size=6), max_size=3), at=cuts)
def test_earliest_of_several_stop_strings_counts(text: str, stops: list[str], at: list[int]) -> None:
    places = [text.index(stop) for stop in stops if stop in text]
    single_bytes = list(range(len(text)))
    pieces, stream = run(text.encode(), single_bytes, tuple(stops))
    # Byte by byte, the stop string that is complete first decides.
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    first = min(ends, default=None)
    expected = text if first is None else text[: min(p for p, e in zip(places, ends, strict=True) if e == first)]
    assert "".join(pieces) == expected
    assert stream.stopped == bool(places)


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    stream = TextStream(("END",))
    assert stream.feed(b"xE") == "x"
    assert stream.feed(b"N") == ""
    assert stream.feed(b"X") == "ENX"
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.feed("é".encode()[1:]) == "é"
    assert stream.feed(b"aEND and more") == "a"
    assert stream.feed(b"more") == ""
    assert stream.finish() == ""


@pytest.mark.parametrize("data", [b"\xff", b"a\xc3(", b"\xf0\x9f("])
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes) -> None:
    pieces, _ = run(data, [])
    assert "\ufffd" in "".join(pieces)


def test_unfinished_character_is_left_out() -> None:
    pieces, _ = run("ok🎉".encode()[:-1], [])
    assert "".join(pieces) == "ok"


def test_empty_stop_string_stops_nothing() -> None:
    pieces, stream = run(b"abc", [], ("",))
    assert "".join(pieces) == "abc"
    assert not stream.stopped
