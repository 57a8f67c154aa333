"""A conversation as a list of messages, and its JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llmkit.errors import FormatError, OutputError
from llmkit.formats.output import publish
from llmkit.protocols import Message

_FORMAT: Final = "llmkit-chat"
_VERSION: Final = 1
_ROLES: Final = ("system", "user", "assistant")
_MAX_BYTES: Final = 64 << 20


@dataclass(slots=True)
class Conversation:
    """Messages in order; a system message, if there is one, comes first."""

    messages: list[Message] = field(default_factory=list)

    @property
    def system(self) -> str | None:
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        if self.system is not None:
            del self.messages[0]
        if text is not None:
            self.messages.insert(0, {"role": "system", "content": text})

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def last_is(self, role: str) -> bool:
        return bool(self.messages) and self.messages[-1]["role"] == role

    def clear(self) -> None:
        """Forget everything but the system message."""
        system = self.system
        self.messages.clear()
        self.system = system

    def save(self, path: Path, *, model: str) -> None:
        """Write the messages as JSON; the file appears complete or not at all.

        A file that is there already is replaced only if it is a saved conversation. Raises OutputError.
        """
        if path.is_file():
            try:
                Conversation.load(path)
            except FormatError as error:
                raise OutputError(f"{path} exists and is not a saved conversation: choose another name") from error
        content = {"format": _FORMAT, "version": _VERSION, "model": model, "messages": self.messages}
        data = (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8", "replace")
        with publish(path, len(data), overwrite=True) as file:
            file.write_at(data, 0)

    @staticmethod
    def load(path: Path) -> Conversation:
        """Read what `save` wrote, or a bare list of messages. Raises FormatError, also if it cannot be read."""
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise FormatError(path, f"cannot be read: {error.strerror}") from error
        if len(data) > _MAX_BYTES:
            raise FormatError(path, f"not a saved conversation: one has at most {_MAX_BYTES} bytes")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FormatError(path, f"not a saved conversation: no valid JSON ({error})") from error
        if isinstance(content, dict):
            if content.get("format") != _FORMAT or content.get("version") != _VERSION:
                raise FormatError(path, f"not a saved conversation: expected format {_FORMAT!r}, version {_VERSION}")
            content = content.get("messages")
        if not isinstance(content, list):
            raise FormatError(path, "not a saved conversation: expected a list of messages")
        return Conversation([_message(path, number, item) for number, item in enumerate(content, 1)])


def _message(path: Path, number: int, item: Any) -> Message:
    if not isinstance(item, dict):
        raise FormatError(path, f"message {number}: expected an object with role and content")
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise FormatError(path, f"message {number}: role is {role!r}, expected one of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise FormatError(path, f"message {number}: content is not text")
    if role == "system" and number > 1:
        raise FormatError(path, f"message {number}: only the first message can be the system message")
    return {"role": role, "content": content}
