"""Options and arguments of the Python interface, checked before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.errors import EngineError
from llmkit.protocols import SamplingOptions
from llmkit.runtimes.fake import FakeSession


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
