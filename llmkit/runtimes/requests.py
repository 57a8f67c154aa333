"""What a session refuses before anything runs, with the reason."""

from __future__ import annotations

from llmkit.errors import EngineError


class PromptTooLongError(EngineError):
    """The prompt has more tokens than the context holds."""


def check_fits(n_tokens: int, n_context: int, advice: str = "shorten it") -> None:
    """EngineError if there are no tokens, PromptTooLongError if there are more than `n_context`."""
    if n_tokens == 0:
        raise EngineError("there is nothing to process: the prompt has no tokens")
    if n_tokens > n_context:
        raise PromptTooLongError(f"the prompt has {n_tokens} tokens and the context holds {n_context}: {advice}")
