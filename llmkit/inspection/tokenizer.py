"""The tokenizer of a folder with a tokenizer.json and a model whose settings name its special tokens."""

from __future__ import annotations

from pathlib import Path

from llmkit.formats.strictjson import read_json_object
from llmkit.inspection.records import Tokenizer


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
