"""The YAML front matter of a Markdown file, such as a model card: the lines between two `---` at its start.

Scalars stay text. YAML 1.1 would turn the language `no` into false and the version `1.0` into a number. The
document is built from parser events with a bound on depth: PyYAML's C composer recurses, and a few hundred kilobytes
of brackets crash it. Aliases are not followed, so a small file cannot stand for a large one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from llmkit.errors import FormatError
from llmkit.formats.files import open_regular, read_exactly

MAX_CARD_BYTES: Final = 4 << 20
_MAX_DEPTH: Final = 32
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})

Node = str | None | list[Any] | dict[str, Any]


class FrontMatterError(FormatError):
    """The front matter cannot be read; the rest of the file may be fine."""


def read_front_matter(path: Path) -> dict[str, Node]:
    """The front matter of `path` as nested dicts and lists of text; {} if the file has none.

    Raises FrontMatterError for a file that is too large, not UTF-8, or whose front matter is not a YAML mapping
    (or is nested more than 32 deep).
    """
    try:
        text = _read(path)
    except FormatError as error:
        raise FrontMatterError(path, str(error).removeprefix(f"{path}: ")) from None
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), len(lines))
    # Tabs are no indentation in YAML, yet cards have them.
    node = _parse("\n".join(lines[1:end]).replace("\t", "  ") + "\n", path)
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise FrontMatterError(path, "the front matter is not a YAML mapping")
    return node


def _read(path: Path) -> str:
    file, size = open_regular(path)
    with file:
        if size > MAX_CARD_BYTES:
            raise FormatError(path, f"{size:,} bytes; expected at most {MAX_CARD_BYTES:,}")
        data = read_exactly(file, size, path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(path, f"not valid UTF-8 (byte {error.start})") from None


def _parse(text: str, path: Path) -> Node:
    """The first document of `text`."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    root: list[Node] = []
    stack: list[tuple[list[Node], bool]] = [(root, False)]  # children so far; whether they are keys and values
    try:
        for event in yaml.parse(text, Loader=loader):
            children = stack[-1][0]
            if isinstance(event, yaml.ScalarEvent):
                plain_null = event.style in (None, "") and event.value in _NULLS
                children.append(None if plain_null else event.value)
            elif isinstance(event, yaml.AliasEvent):
                children.append(None)
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(stack) > _MAX_DEPTH:
                    raise FrontMatterError(path, f"the front matter is nested more than {_MAX_DEPTH} deep")
                stack.append(([], isinstance(event, yaml.MappingStartEvent)))
            elif isinstance(event, yaml.CollectionEndEvent):
                found, is_mapping = stack.pop()
                stack[-1][0].append(_mapping(found) if is_mapping else found)
            elif isinstance(event, yaml.DocumentEndEvent):
                break
    except yaml.YAMLError as error:
        raise FrontMatterError(path, f"the front matter is not valid YAML: {' '.join(str(error).split())}") from None
    return root[0] if root else None


def _mapping(items: list[Node]) -> dict[str, Any]:
    """Keys and values in turn; keys that are not text are left out."""
    return {key: value for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str)}
