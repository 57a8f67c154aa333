"""The chat templates of a checkpoint: files first, then tokenizer_config.json, as transformers reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import ascii_letters, digits
from typing import Any, Final

from llmkit.errors import FormatError
from llmkit.formats.files import open_regular, read_exactly
from llmkit.formats.strictjson import read_json_object

MAX_TEMPLATE_BYTES: Final = 4 << 20
_NAME_CHARACTERS: Final = frozenset(ascii_letters + digits + "_")


def read_chat_templates(folder: Path, config: Mapping[str, Any], notes: list[str] | None = None) -> dict[str, str]:
    """Name -> template, from the first source that has any; the unnamed one is called "default".

    config: tokenizer_config.json's content. Adds to `notes` what is left out. Templates are not run here. Raises
    FormatError for a template file that is not UTF-8 or too large.
    """
    found = _find(folder, config, [] if notes is None else notes)
    return {name: text for name, text in found.items() if text}


def _find(folder: Path, config: Mapping[str, Any], notes: list[str]) -> dict[str, str]:
    configured = config.get("chat_template")
    main = folder / "chat_template.jinja"
    if main.is_file():
        templates = {"default": _read(main)}
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            if _named(path.stem) != "default":
                templates[_named(path.stem)] = _read(path)
        if isinstance(configured, str) and configured != templates["default"]:
            notes.append(
                "chat_template.jinja and tokenizer_config.json hold different chat templates; the file is taken"
            )
        return templates
    if configured is None and (folder / "chat_template.json").is_file():
        configured = read_json_object(folder / "chat_template.json").get("chat_template")
    return _from_json(configured, notes)


def _from_json(configured: object, notes: list[str]) -> dict[str, str]:
    """A template as a string, as a list of {"name", "template"}, or as an object name -> template."""
    if isinstance(configured, str):
        return {"default": configured}
    if isinstance(configured, dict):
        entries: list[object] = [{"name": name, "template": text} for name, text in configured.items()]
    else:
        entries = configured if isinstance(configured, list) else []
    templates: dict[str, str] = {}
    for entry in entries:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and name and isinstance(text, str):
            templates[_named(name)] = text
    if configured is not None and not templates:
        notes.append(
            "the chat_template of tokenizer_config.json is neither a template nor a list of them; it is left out"
        )
    return templates


def _named(name: str) -> str:
    """`name` with only the characters that GGUF keys use."""
    return "".join(character if character in _NAME_CHARACTERS else "_" for character in name)


def _read(path: Path) -> str:
    file, size = open_regular(path)
    with file:
        if size > MAX_TEMPLATE_BYTES:
            raise FormatError(path, f"{size:,} bytes; expected a chat template of at most {MAX_TEMPLATE_BYTES:,}")
        try:
            return read_exactly(file, size, path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(path, f"not valid UTF-8 (byte {error.start})") from None
