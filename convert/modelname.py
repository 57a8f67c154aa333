"""What a model's name tells: `org/Base-1.5-8B-Instruct-v2` is a base name, a size, a fine-tune and a version.

The reading follows the naming convention of GGUF files (docs/gguf.md of ggml) and gives the same parts as
gguf-py/gguf/metadata.py, which fills `general.*` for files that people compare with ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_VERSION: Final = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE: Final = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_UNITS: Final = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_KEEPS_CASE: Final = re.compile(r"v\d+(?:\.\d+)*|\d.*")


@dataclass(frozen=True, slots=True)
class ModelName:
    """The parts of a model's name; None for what it does not tell."""

    name: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


@dataclass(slots=True)
class _Part:
    text: str
    kind: str = ""  # "version", "type", "size", "finetune"; "" where the spelling does not tell
    in_basename: bool = False


def parse_model_name(model_id: str, n_params: int) -> ModelName:
    """Take `org/name` or `name` apart; a sentence (anything with a space) stays whole.

    `n_params` tells sizes from other numbers with a unit: a size far from it is a context length, such as 128k.
    """
    if " " in model_id:
        return ModelName(model_id)
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    if organization.startswith("."):
        organization = ""
    parts = [_classified(text, index, n_params) for index, text in enumerate(filter(None, name.split("-")))]
    sizes = [part for part in parts if part.kind == "size"]
    if any(character.isdecimal() for part in sizes for character in part.text):
        for part in sizes:
            if part.text.isalpha():  # "large" beside "7B" says nothing about the size
                part.kind = ""
    _mark_basename(parts)
    size_label = "-".join(dict.fromkeys(part.text for part in parts if part.kind == "size")) or None
    finetune = "-".join(part.text for part in parts if part.kind == "finetune") or None
    version = "-".join(part.text for part in parts if part.kind == "version" and not part.in_basename) or None
    basename = "-".join(part.text for part in parts if part.in_basename) or None
    if size_label is None and finetune is None and version is None:
        basename = None  # nothing tells where a base name would end
    return ModelName(name, organization or None, basename, finetune, version, size_label)


def title(text: str) -> str:
    """`text` with words for dashes and capitals for words, but not for versions, numbers or acronyms."""
    words = text.strip().replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _KEEPS_CASE.fullmatch(word) else word for word in words)


def size_label(n_params: int, n_experts: int = 0) -> str:
    """`n_params` in two digits or more: 135M, 1.1B, 13B; with experts those of a model that has one: 8x7.2B."""
    if n_experts:
        return f"{n_experts}x{size_label(n_params)}"
    unit, scale = next((item for item in reversed(_UNITS.items()) if n_params > item[1]), ("K", 1e3))
    digits = len(str(round(n_params / scale)).lstrip("0"))
    return f"{n_params / scale:.{max(2 - digits, 0)}f}{unit}"


def _classified(text: str, index: int, n_params: int) -> _Part:
    if _VERSION.fullmatch(text):
        return _Part(text, "version")
    if _TYPE.fullmatch(text):
        return _Part(text.upper(), "type")
    if index > 0 and _SIZE.fullmatch(text):
        return _size(text, n_params)
    if index > 0 and _FINETUNE.fullmatch(text):
        return _Part(text, "finetune")
    return _Part(text)


def _size(text: str, n_params: int) -> _Part:
    text = text.replace("_", ".")
    if text[-1].isdecimal():  # bloom-7b1 is 7.1b
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if text[-1] in "kmbt" and len(text) > 1 and text[-2].isdecimal():
        text = text[:-1] + text[-1].upper()
    number = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT])", text)
    if number and n_params and abs(float(number[1]) * _UNITS[number[2]] - n_params) > 7 * n_params // 8:
        return _Part(text[:-1] + text[-1].lower(), "finetune")
    return _Part(text, "size")


def _mark_basename(parts: list[_Part]) -> None:
    """The base name is what stands before the first part of another kind; versions at the very end are not of it."""
    at_start = True
    for part in parts:
        at_start = at_start and ((not part.kind and part.text[0].isalpha()) or part.kind == "version")
        part.in_basename = at_start
        if not at_start and not part.kind:
            part.kind = "finetune"
    for part in reversed(parts):
        if not (part.in_basename and part.kind):
            break
        part.in_basename = False
