"""How the embeddings of tokens become one of the text, as the files of sentence-transformers say.

modules.json lists what a text goes through, one after the other: the transformer, a pooling (whose own config.json
says which), and perhaps more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from llmkit.convert.archs.config import excerpt
from llmkit.convert.weightfiles import member
from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.files import open_regular, read_exactly
from llmkit.formats.strictjson import parse_json, read_json_object

MODULES: Final = "modules.json"
SETTINGS: Final = "sentence_bert_config.json"
_POOLING: Final = "1_Pooling"
_MAX_BYTES: Final = 1 << 20

# Keys of the pooling's config.json, and values of its newer `pooling_mode`: what llmkit calls them.
_FLAGS: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_MODES: Final = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
# Modules that change nothing that a file could say: normalising is done by whoever asks for embeddings.
_HARMLESS: Final = ("Transformer", "Normalize")


def read_pooling(folder: Path) -> str | None:
    """ "mean", "cls" or "last"; None without modules.json.

    Raises FormatError for files that are not what sentence-transformers writes, UnsupportedError for another pooling,
    and for modules whose weights llama.cpp would leave out.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    found: str | None = None
    for module in _modules(path):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling" and found is None:
            found = _pooling(member(folder, f"{module['path']}/config.json"))
        elif kind not in _HARMLESS:
            raise UnsupportedError(
                f"{path}: a module of type {excerpt(module['type'])}, which llama.cpp does not compute behind this "
                f"model; without {MODULES} it is converted up to the embeddings of tokens"
            )
    return found


def write_pooling(pooling: str | None, n_embd: int) -> dict[str, Any]:
    """`read_pooling` backwards: the files of sentence-transformers by their names, none without a pooling."""
    if pooling is None:
        return {}
    modules = (("", "Transformer"), (_POOLING, "Pooling"))
    return {
        MODULES: [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        f"{_POOLING}/config.json": {
            "word_embedding_dimension": n_embd,
            **{flag: name == pooling for flag, name in _FLAGS.items()},
        },
    }


def longest_text(folder: Path) -> int | None:
    """After how many tokens sentence-transformers cuts a text; None where it does not say."""
    path = folder / SETTINGS
    value = read_json_object(path).get("max_seq_length") if path.is_file() else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _modules(path: Path) -> list[dict[str, str]]:
    file, size = open_regular(path)
    with file:
        if size > _MAX_BYTES:
            raise FormatError(path, f"{size:,} bytes; expected at most {_MAX_BYTES:,}")
        modules: Any = parse_json(read_exactly(file, size, path), path)
    if not isinstance(modules, list):
        raise FormatError(path, f"expected a list of modules, found {excerpt(modules)}")
    for module in modules:
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise FormatError(path, f"expected a module with a type and a path, found {excerpt(module)}")
    return modules


def _pooling(path: Path) -> str:
    values = read_json_object(path)
    mode = values.get("pooling_mode")
    if mode is not None:
        modes = [str(part) for part in mode] if isinstance(mode, list) else [str(mode)]
    else:
        modes = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
    known = {**_FLAGS, **_MODES}
    if len(modes) != 1 or modes[0] not in known:
        raise UnsupportedError(
            f"{path}: pooling {excerpt(' and '.join(modes) or 'unknown')}; llama.cpp takes the mean, the first token "
            "(cls) or the last one (lasttoken)"
        )
    return known[modes[0]]
