"""Tokenizer and templates of a folder with a tokenizer.json and a model whose settings name its special tokens."""

from __future__ import annotations

from pathlib import Path

from llmkit.formats.chattemplates import read_chat_templates
from llmkit.formats.strictjson import read_json_object
from llmkit.inspection.records import ChatTemplate, Tokenizer


def read_tokenizer(folder: Path, *, bos: object, ends: frozenset[int]) -> Tokenizer | None:
    """What tokenizer.json is; None without one. bos and ends: token ids, by the model's settings."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    model = read_json_object(path, max_bytes=256 << 20).get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    return Tokenizer(
        model=kind if isinstance(kind, str) else None,
        file=path.name,
        bos=bos if isinstance(bos, int) else None,
        eos=min(ends, default=None),
    )


def read_templates(folder: Path) -> tuple[ChatTemplate, ...]:
    """The chat templates that lie in the folder."""
    config = folder / "tokenizer_config.json"
    settings = read_json_object(config) if config.is_file() else {}
    return tuple(ChatTemplate(name, text) for name, text in read_chat_templates(folder, settings).items())
