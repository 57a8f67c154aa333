"""`llmkit.json`: what lies in a folder of a deployment format, by whom it was made and from what.

Keys: format, title, precision, source {name, kind}, architecture, parameters, context (positions of the cache), imatrix
{name, datasets} if there was one, trained_context, vocabulary, layers, cache_shape [layers, 1, heads, positions,
width], tokens_at_once, token_ids {bos, eos, pad}, short_positions (of LongRoPE: longer texts are rotated otherwise),
versions {package: version}, model (the file, or prefill and decode), weights (a SafeTensors file, of formats that keep
one), tensors {name: {dtype, shape, bytes, sha256}}, and what a format adds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llmkit.errors import FormatError
from llmkit.formats.checkpointfiles import MANIFEST
from llmkit.formats.strictjson import json_kind, read_json_object

_VERSION: Final = 1
_OTHER_SUFFIXES: Final = (".json", ".jinja", ".txt")
_MAX_BYTES: Final = 64 << 20
_LARGEST: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A folder that llmkit wrote. `ends` are the tokens that end an answer; `values` is all that the file says."""

    path: Path
    values: Mapping[str, Any]
    format: str
    precision: str
    architecture: str
    n_params: int
    n_context: int
    n_vocab: int
    cache_shape: tuple[int, ...]
    tokens_at_once: int
    ends: frozenset[int]
    short_positions: int | None

    def file(self, key: str = "model") -> Path:
        """The file or folder in this one that a key names. Raises FormatError."""
        name = self.values.get(key)
        if not isinstance(name, str) or not name or PurePosixPath(name).name != name or name in (".", ".."):
            raise FormatError(
                self.path / MANIFEST, f"{key} must be the name of a file in the folder, found {name!r:.100}"
            )
        path = self.path / name
        if not path.exists():
            raise FormatError(path, f"is missing, and {MANIFEST} names it")
        return path


def model_bytes(folder: Path) -> int:
    """Bytes of weights and graphs in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and belongs_to_model(path))


def belongs_to_model(path: Path) -> bool:
    """Whether a file has weights or graphs: all but settings and tokenizers do."""
    return not path.name.endswith(_OTHER_SUFFIXES) and "tokenizer" not in path.name


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write the file."""
    text = json.dumps({"version": _VERSION, **values}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_exported(folder: Path) -> ExportedModel:
    """Read and check the file. Raises FormatError."""
    source = folder / MANIFEST
    values = read_json_object(source, max_bytes=_MAX_BYTES)
    if values.get("version") != _VERSION:
        raise FormatError(source, f"version {values.get('version')!r:.100}; this llmkit knows {_VERSION}")
    shape = values.get("cache_shape")
    if not isinstance(shape, list) or len(shape) != 5:
        raise FormatError(source, f"cache_shape must be a list of five numbers, found {shape!r:.100}")
    context = _integer(values, "context", source)
    sizes = tuple(_positive(size, "cache_shape", source) for size in shape)
    if sizes[1] != 1 or sizes[3] != context:
        raise FormatError(source, f"cache_shape {list(sizes)} contradicts context {context}")
    return ExportedModel(
        path=folder,
        values=values,
        format=_text(values, "format", source),
        precision=_text(values, "precision", source),
        architecture=_text(values, "architecture", source),
        n_params=_integer(values, "parameters", source, 1 << 50),
        n_context=context,
        n_vocab=_integer(values, "vocabulary", source),
        cache_shape=sizes,
        tokens_at_once=_integer(values, "tokens_at_once", source),
        ends=_ends(values, source),
        short_positions=_integer(values, "short_positions", source) if "short_positions" in values else None,
    )


def _text(values: Mapping[str, Any], key: str, source: Path) -> str:
    found = values.get(key)
    if not isinstance(found, str) or not found:
        raise FormatError(source, f"{key} must be a text, found {json_kind(found)}")
    return found


def _integer(values: Mapping[str, Any], key: str, source: Path, largest: int = _LARGEST) -> int:
    return _positive(values.get(key), key, source, largest)


def _positive(found: object, key: str, source: Path, largest: int = _LARGEST) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < largest:
        raise FormatError(source, f"{key} must be a positive number, found {found!r:.100}")
    return found


def _ends(values: Mapping[str, Any], source: Path) -> frozenset[int]:
    ids = values.get("token_ids")
    if not isinstance(ids, dict):
        raise FormatError(source, f"token_ids must be an object, found {json_kind(ids)}")
    eos = ids.get("eos", [])
    found = eos if isinstance(eos, list) else [eos]
    if any(isinstance(id, bool) or not isinstance(id, int) or id < 0 for id in found):
        raise FormatError(source, f"token_ids: eos must be a token id or a list of them, found {eos!r:.100}")
    return frozenset(found)
