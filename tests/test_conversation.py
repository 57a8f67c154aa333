"""Saved conversations: written whole, read with suspicion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.conversation import Conversation
from llmkit.errors import FormatError, OutputError


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    conversation = Conversation()
    conversation.system = "Be brief. é 🎉"
    conversation.add("user", 'line\nline "quoted" \x00 \u2028')
    conversation.add("assistant", "")
    path = tmp_path / "chat.json"
    conversation.save(path, model="m")
    assert Conversation.load(path) == conversation
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["format"], content["version"], content["model"]) == ("llmkit-chat", 1, "m")
    conversation.add("user", "more")
    conversation.save(path, model="m")
    assert len(Conversation.load(path).messages) == 4
    assert list(tmp_path.iterdir()) == [path]


def test_bare_list_of_messages_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('[{"role": "user", "content": "hi", "name": "ignored"}]')
    assert Conversation.load(path).messages == [{"role": "user", "content": "hi"}]


def test_system_message_comes_first_and_can_go() -> None:
    conversation = Conversation()
    assert conversation.system is None
    conversation.add("user", "hi")
    conversation.system = "A"
    conversation.system = "B"
    assert [message["role"] for message in conversation.messages] == ["system", "user"]
    assert conversation.system == "B"
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "B"}]
    conversation.system = None
    assert conversation.messages == []


BAD: dict[str, Any] = {
    "no JSON": "{",
    "not UTF-8": b"\xff\xfe\x00",
    "deep": "[" * 100_000,
    "number": "5",
    "other format": {"format": "other", "version": 1, "messages": []},
    "other version": {"format": "llmkit-chat", "version": 2, "messages": []},
    "no messages": {"format": "llmkit-chat", "version": 1},
    "message is text": ["hi"],
    "unknown role": [{"role": "root", "content": "x"}],
    "role is a list": [{"role": ["user"], "content": "x"}],
    "no content": [{"role": "user"}],
    "content is a list": [{"role": "user", "content": ["x"]}],
    "late system": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    content = BAD[name]
    data = (
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"bad\.json"):
        Conversation.load(path)
    with pytest.raises(OutputError, match="not a saved conversation"):
        Conversation().save(path, model="m")
    assert path.read_bytes() == data


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nope\.json: cannot be read: No such file or directory$"):
        Conversation.load(tmp_path / "nope.json")
    with pytest.raises(FormatError, match="cannot be read: "):
        Conversation.load(tmp_path)


def test_model_is_no_saved_conversation(smollm2_gguf: Path) -> None:
    with pytest.raises(FormatError, match=r"\.gguf: not a saved conversation: "):
        Conversation.load(smollm2_gguf)


def test_oversized_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="not a saved conversation: one has at most"):
        Conversation.load(path)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        Conversation().save(tmp_path / "none" / "chat.json", model="m")
    with pytest.raises(OutputError, match="folder"):
        Conversation().save(tmp_path, model="m")
