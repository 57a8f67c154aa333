"""What a session refuses before anything runs, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Final

from llmkit.errors import EngineError

ROLES: Final = ("system", "user", "assistant")


class PromptTooLongError(EngineError):
    """The prompt has more tokens than the context holds."""


def check_fits(n_tokens: int, n_context: int, advice: str = "shorten it") -> None:
    """EngineError if there are no tokens, PromptTooLongError if there are more than `n_context`."""
    if n_tokens == 0:
        raise EngineError("there is nothing to process: the prompt has no tokens")
    if n_tokens > n_context:
        raise PromptTooLongError(f"the prompt has {n_tokens} tokens and the context holds {n_context}: {advice}")


def check_messages(messages: Any) -> None:
    """EngineError unless `messages` is a sequence of at least one message with a known role and a text."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise EngineError(
            f"messages is {_kind(messages)}: expected a list of messages, such as "
            '[{"role": "user", "content": "Hello"}]'
        )
    if not messages:
        raise EngineError("there is nothing to answer: the list of messages is empty")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise EngineError(f"message {number} is {_kind(message)}: expected a dict with role and content")
        if message.get("role") not in ROLES:
            role = repr(message["role"]) if "role" in message else "missing"
            raise EngineError(f"message {number}: role is {role}, expected one of {', '.join(ROLES)}")
        if "content" not in message:
            raise EngineError(f"message {number} has no content")
        if not isinstance(message["content"], str):
            raise EngineError(f"message {number}: content is {_kind(message['content'])}, expected a str")


def check_prompt(prompt: Any) -> None:
    """EngineError unless `prompt` is a text or a sequence (or an array) of integers."""
    if isinstance(prompt, str):
        return
    ids: list[Any] | None
    try:
        ids = None if isinstance(prompt, bytes | Mapping) or not hasattr(prompt, "__len__") else list(prompt)
    except TypeError:
        ids = None
    if ids is None or not all(isinstance(token, Integral) for token in ids):
        raise EngineError(f"the prompt is {_kind(prompt)}: expected a str or a sequence of token ids")


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
