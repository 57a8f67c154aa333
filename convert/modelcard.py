"""`general.*` metadata: what a model is, by its model card, its config and its name.

Keys and sources are those of gguf-py/gguf/metadata.py (the heuristics for names are in modelname.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from llmkit.convert.frontmatter import FrontMatterError, read_front_matter
from llmkit.convert.modelname import ModelName, parse_model_name, size_label, title
from llmkit.formats.gguf import Value, ValueType, array, f32, i32, string, u32
from llmkit.formats.strictjson import read_json_object

# general.<key> -> keys of the model card, the first that is there.
_CARD_KEYS: Final = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
_LISTS: Final[dict[str, tuple[str, ...]]] = {"tags": ("tags", "pipeline_tag"), "languages": ("languages", "language")}
_RELATED: Final[dict[str, tuple[str, ...]]] = {
    "base_model": ("base_model", "base_models", "base_model_sources"),
    "dataset": ("datasets", "dataset", "dataset_sources"),
}
_RELATED_KEYS: Final = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")

# general.sampling.<key> -> keys of generation_config.json, and whether the value is a whole number.
_SAMPLING: Final = {
    "top_k": (("top_k",), True),
    "top_p": (("top_p",), False),
    "min_p": (("min_p",), False),
    "temp": (("temperature",), False),
    "penalty_repeat": (("penalty_repeat", "repetition_penalty"), False),
}
_HUB_URL: Final = re.compile(r"https?://huggingface\.co/([^/]+/[^/]+)")
_HUB_CACHE: Final = re.compile(r"models--([^/]+)--([^/]+)")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def general_metadata(
    folder: Path,
    config: Mapping[str, Any],
    n_params: int,
    model_id: str | None,
    *,
    size: str | None = None,
    notes: list[str] | None = None,
) -> dict[str, Value]:
    """All of `general.*` but architecture, file type, quantisation version and alignment.

    `model_id` is `org/name` of the hub where it is known. `size` is the label where neither card nor names tell it, by
    default that of `n_params`. A model card that cannot be read leaves out what it would
    have told, with a sentence in `notes`. Raises FormatError only for a broken generation_config.json.
    """
    notes = [] if notes is None else notes
    card = _card(folder, notes)
    texts = {key: text for key, names in _CARD_KEYS.items() if (text := _first_text(card, names)) is not None}
    for name in _names(folder, config, model_id, n_params):
        for key in (field.name for field in fields(ModelName)):
            part = getattr(name, key)
            if part is not None and key not in texts:
                texts[key] = _utf8(title(part) if key in ("name", "organization") else part)
    texts.setdefault("name", "model")
    texts.setdefault("size_label", size or size_label(n_params))

    found: dict[str, Value] = {"general.type": string("model")}
    found |= _sampling(folder)
    order = [key for key in _CARD_KEYS if key in texts]
    found |= {f"general.{key}": string(texts[key]) for key in order}
    for kind, sources in _RELATED.items():
        found |= _related(kind, _first_list(card, sources), n_params)
    for key, sources in _LISTS.items():
        items = [text for source in sources for text in _texts(card.get(source))]
        if items:
            found[f"general.{key}"] = array(ValueType.STRING, items)
    return found


def _card(folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        return read_front_matter(path)
    except FrontMatterError as error:
        notes.append(f"the model card is not used: {error}")
        return {}


def _names(folder: Path, config: Mapping[str, Any], model_id: str | None, n_params: int) -> Iterator[ModelName]:
    """Names of the model, the most telling first."""
    if model_id:
        yield parse_model_name(model_id, n_params)
    path = config.get("_name_or_path")
    if isinstance(path, str) and path and path.count("/") <= 1:  # not a path on somebody's machine
        yield parse_model_name(path, n_params)
    real = folder.resolve()
    if _COMMIT.fullmatch(real.name):  # a snapshot in the hub's cache: models--org--name/snapshots/<commit>
        cached = _HUB_CACHE.fullmatch(real.parent.parent.name)
        if cached:
            yield parse_model_name(f"{cached[1]}/{cached[2]}", n_params)
    elif real.name:
        yield parse_model_name(real.name, n_params)


def _sampling(folder: Path) -> dict[str, Value]:
    """Recommended sampling parameters, where generation_config.json has them."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    generation = read_json_object(path)
    found = {}
    for key, (names, whole) in _SAMPLING.items():
        number = next((generation[name] for name in names if generation.get(name) is not None), None)
        if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) < 1 << 31:
            continue
        if isinstance(number, int) or not whole:
            found[f"general.sampling.{key}"] = i32(int(number)) if whole else f32(number)
    return found


def _related(kind: str, entries: list[Any], n_params: int) -> dict[str, Value]:
    """`general.base_model.*` or `general.dataset.*` for entries given as id, URL or mapping."""
    described = [description for entry in entries if (description := _describe(entry, n_params))]
    if not described:
        return {}
    found = {f"general.{kind}.count": u32(len(described))}
    for index, description in enumerate(described):
        for key in _RELATED_KEYS:
            if key in description:
                found[f"general.{kind}.{index}.{key}"] = string(description[key])
    return found


def _describe(entry: object, n_params: int) -> dict[str, str]:
    if isinstance(entry, dict):
        return {key: entry[key] for key in _RELATED_KEYS if isinstance(entry.get(key), str)}
    if not isinstance(entry, str):
        return {}
    is_url = entry.startswith(("http://", "https://", "ssh://"))
    found = {"repo_url": entry} if is_url else {}
    hub = _HUB_URL.fullmatch(entry)
    if is_url and not hub:
        return found
    name = parse_model_name(hub[1] if hub else entry, n_params)
    found["name"] = title(name.name)
    if name.organization is not None:
        found["organization"] = title(name.organization)
        found.setdefault("repo_url", f"https://huggingface.co/{name.organization}/{name.name}")
    if name.version is not None:
        found["version"] = name.version
    return found


def _utf8(text: str) -> str:
    """`text` as UTF-8 can spell it: folder names are bytes, and JSON can escape half a character."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _first_text(card: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of `names` that holds text, or texts (several licences)."""
    for name in names:
        texts = _texts(card.get(name))
        if texts:
            return ",".join(texts)
    return None


def _first_list(card: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    for name in names:
        value = card.get(name)
        if value is not None:
            return value if isinstance(value, list) else [value]
    return []


def _texts(value: object) -> list[str]:
    """Text, or the texts of a list."""
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, str) and entry]
