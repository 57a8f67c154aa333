"""Options and arguments of the Python interface, checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.errors import EngineError
from llmkit.protocols import SamplingOptions
from llmkit.runtimes.fake import FakeSession
from llmkit.runtimes.llamacpp import load
from tests.runtimes import tiny_gguf

USER = {"role": "user", "content": "hi"}
BAD_MESSAGES: list[tuple[Any, str]] = [
    ([], "list of messages is empty"),
    ("hello", "messages is of type str: expected a list of messages"),
    (None, "messages is None"),
    (["hello"], "message 1 is of type str"),
    ([USER, {"role": "root", "content": "x"}], "message 2: role is 'root', expected one of system, user, assistant"),
    ([{"content": "x"}], "message 1: role is missing"),
    ([{"role": "user"}], "message 1 has no content"),
    ([{"role": "user", "content": None}], "message 1: content is None, expected a str"),
]
BAD_OPTIONS: list[tuple[Any, str]] = [
    ({"temperature": 0}, "options is of type dict: expected SamplingOptions"),
    (0.5, "options is of type float"),
    (SamplingOptions(temperature="hot"), "temperature is 'hot': expected a number"),  # type: ignore[arg-type]
    (SamplingOptions(max_tokens=1.5), "max_tokens is 1.5: expected an integer"),  # type: ignore[arg-type]
    (SamplingOptions(stop=None), "stop is None"),  # type: ignore[arg-type]
]


def test_one_text_is_one_stop_string() -> None:
    stop: Any
    for stop in ("five", ("five",), ["five"]):
        session = FakeSession(lambda _: "if we have five")
        assert "".join(session.generate("x", SamplingOptions(stop=stop))) == "if we have "
        assert session.stats.stop_reason == "stop"


def test_stop_strings_are_texts() -> None:
    stop: Any = (5,)
    with pytest.raises(EngineError, match="stop is"):
        FakeSession().generate("x", SamplingOptions(stop=stop))


def test_what_are_no_messages_prompts_or_options(tmp_path: Path) -> None:
    with load(tiny_gguf.write_llama(tmp_path / "tiny.gguf"), n_threads=1) as real:
        session: Any
        for session in (FakeSession(), real):
            for messages, reason in BAD_MESSAGES:
                with pytest.raises(EngineError, match=reason):
                    session.chat(messages)
            for options, reason in BAD_OPTIONS:
                with pytest.raises(EngineError, match=reason):
                    session.chat([USER], options)
                with pytest.raises(EngineError, match=reason):
                    session.generate("x", options)
            for prompt in (None, 5, b"x", ["x"], {5: 6}):
                with pytest.raises(EngineError, match="expected a str or a sequence of token ids"):
                    session.generate(prompt)


def test_ids_may_be_an_array() -> None:
    assert "".join(FakeSession().generate(np.array([65, 66]))) == "You said: AB"  # type: ignore[arg-type]
