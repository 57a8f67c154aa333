"""How a tokenizer.json splits text before BPE: its tree of steps as a tuple of stages that can be compared.

A stage is an expression whose matches become pieces of their own, as the rest between them does; each stage splits
the pieces of the one before. Equal tuples split alike, whatever the vocabulary. Steps that are no such thing are
described in words, so that they equal nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmkit.convert.tokenizer.files import steps
from llmkit.convert.tokenizer.splitting import COVERS_ALL, DIGIT, DIGITS, GPT2, PUNCTUATION_MARK, canonical_regex
from llmkit.errors import UnsupportedError

Merge = tuple[str, str]

# Stages after the ByteLevel step see the bytes, each as the character that stands for it.
ON_BYTES: Final = "on bytes: "
_BEHAVIORS: Final = ("MergedWithNext", "MergedWithPrevious", "Contiguous", "Removed")
_SPECIAL_CHARACTERS: Final = frozenset("\\.^$|?*+()[]{}")


@dataclass(frozen=True, slots=True)
class Splitter:
    """How text becomes tokens: the `pre_tokenizer` of a tokenizer.json and the byte-level BPE behind it."""

    pre_tokenizer: object
    vocab: Mapping[str, int]
    merges: Sequence[Merge]
    ignore_merges: bool

    @property
    def stages(self) -> tuple[str, ...]:
        """See `stages_of`."""
        return stages_of(self.pre_tokenizer)


def is_byte_level(pre_tokenizer: object) -> bool:
    """Whether a tokenizer.json's `pre_tokenizer` spells text in the byte-level alphabet, which needs no fallback."""
    return any(step.get("type") == "ByteLevel" for step in steps(pre_tokenizer, "pretokenizers"))


def stages_of(pre_tokenizer: object) -> tuple[str, ...]:
    """The splitting of a tokenizer.json's `pre_tokenizer` that has a ByteLevel step.

    Raises UnsupportedError, with a description of the step, if llmkit cannot say what becomes of the text.
    """
    if not is_byte_level(pre_tokenizer):
        raise UnsupportedError("pre_tokenizer: no ByteLevel step")
    stages: list[str] = []
    on_bytes = ""
    for step in steps(pre_tokenizer, "pretokenizers"):
        found = _stage(step)
        if found is not None:
            stages.append(on_bytes + found)
        if step.get("type") == "ByteLevel":
            on_bytes = ON_BYTES
    return tuple(stages)


def steps_of(stages: Sequence[str]) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json that split by `stages`, ByteLevel among them: `stages_of` gives these back."""
    on_text = [stage for stage in stages if not stage.startswith(ON_BYTES)]
    with_regex = on_text[-1:] == [GPT2]
    return [
        *map(_split_step, on_text[:-1] if with_regex else on_text),
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": with_regex},
        *(_split_step(stage.removeprefix(ON_BYTES)) for stage in stages[len(on_text) :]),
    ]


def _split_step(stage: str) -> dict[str, Any]:
    behavior, found, regex = stage.partition(": ")
    if not found or behavior not in _BEHAVIORS:
        behavior, regex = "Isolated", stage
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}


def _stage(step: dict[str, Any]) -> str | None:
    """What one step splits by; None for a step that only changes the alphabet."""
    kind = step.get("type")
    if kind == "ByteLevel":
        if step.get("add_prefix_space", True):
            raise UnsupportedError(
                "pre_tokenizer: ByteLevel with add_prefix_space, which llama.cpp does not do for BPE"
            )
        return GPT2 if step.get("use_regex", True) else None
    if kind == "Digits":
        return DIGIT if step.get("individual_digits") else DIGITS
    if kind == "Punctuation":
        return _split(PUNCTUATION_MARK, step.get("behavior", "Isolated"), inverted=False)
    if kind == "Split":
        return _split(_pattern(step.get("pattern")), step.get("behavior"), inverted=step.get("invert") is True)
    return json.dumps(step, ensure_ascii=False, sort_keys=True)


def _pattern(pattern: object) -> str:
    if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        return canonical_regex(pattern["Regex"])
    if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
        return "".join("\\" + c if c in _SPECIAL_CHARACTERS else c for c in pattern["String"])
    raise UnsupportedError(f"pre_tokenizer: Split by {pattern!r:.100}")


def _split(regex: str, behavior: object, *, inverted: bool) -> str:
    """A step that cuts at the matches of `regex`, or, inverted, at the rest: that is the same where both are kept."""
    if behavior == "Isolated" or (behavior == "Removed" and inverted and regex in COVERS_ALL):
        return regex
    if behavior == "Contiguous" and not inverted and regex == PUNCTUATION_MARK:
        return f"{regex}+"
    return f"{behavior}{', inverted' if inverted else ''}: {regex}"
