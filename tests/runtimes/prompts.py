"""Prompts and options that several test files of the llama.cpp adapter use."""

from __future__ import annotations

from dataclasses import replace

from llmkit.protocols import SamplingOptions
from llmkit.runtimes.llamacpp import LlamaCppSession

GREEDY = SamplingOptions(temperature=0, max_tokens=24)
STORY = "Once upon a time, in a small village by the sea, there lived"
EMOJI = "🎉🎊🎉🎊🎉🎊🎉🎊"


def text_of(session: LlamaCppSession, prompt: str, options: SamplingOptions = GREEDY, **changes: object) -> str:
    return "".join(session.generate(prompt, replace(options, **changes)))  # type: ignore[arg-type]
