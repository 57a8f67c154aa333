"""`model.safetensors.index.json`, and PyTorch's: which shard of a checkpoint holds which tensor."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Final

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import PYTORCH_INDEX
from llmkit.formats.strictjson import json_kind, read_json_object

_MAX_BYTES: Final = 100_000_000  # about 1,000,000 tensors


def read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> shard, a relative file name inside the index's folder; whether it exists is not looked at.

    Raises FormatError when the index cannot be read, is malformed, or names a file outside its folder.
    """
    weight_map = read_json_object(path, max_bytes=_MAX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(path, f"weight_map must be an object that names shards, found {json_kind(weight_map)}")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise FormatError(path, f"the shard must be a file name, found {json_kind(shard)}", tensor=tensor)
    for shard in sorted(set(weight_map.values())):
        if problem := _name_problem(shard, ".bin" if path.name == PYTORCH_INDEX else ".safetensors"):
            raise FormatError(path, f"names the shard {shard!r}, which {problem}")
    return weight_map


def _name_problem(shard: str, suffix: str) -> str | None:
    parts = PurePosixPath(shard)
    if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:|\\", shard):
        return "is outside the folder; an index may only name files of its own folder"
    if not shard.endswith(suffix):
        return f"is not a {suffix} file"
    if "\\" in shard or len(shard) > 255 or not shard.isprintable():
        return "is not a valid file name"
    return None
