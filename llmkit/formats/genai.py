"""Folders of ONNX Runtime GenAI: genai_config.json, and whether the graph is as it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llmkit.errors import FormatError, UnsupportedError
from llmkit.formats.checkpointfiles import GENAI_CONFIG as CONFIG
from llmkit.formats.onnxmodel import OnnxModel, read_onnx
from llmkit.formats.strictjson import json_kind, read_json_object


@dataclass(frozen=True, slots=True)
class GenaiFolder:
    """A decoder for ONNX Runtime GenAI. `ends` are the tokens that end an answer."""

    path: Path
    config: dict[str, Any]
    model: OnnxModel
    architecture: str
    n_context: int
    n_vocab: int
    n_layers: int
    ends: frozenset[int]


def read_genai_folder(path: Path) -> GenaiFolder:
    """Read the settings and the header of the graph in the folder `path`.

    Raises FormatError for what is damaged, missing, leads out of the folder, or contradicts the graph;
    UnsupportedError for models that are more than one decoder.
    """
    source = path / CONFIG
    config = read_json_object(source)
    model = _part(config, "model", source)
    decoder = _part(model, "decoder", source)
    if "encoder" in model or "vision" in model or "pipeline" in decoder:
        raise UnsupportedError(f"{source}: the model has several parts; llmkit runs decoders of text alone")
    name = decoder.get("filename")
    if not isinstance(name, str) or not name or PurePosixPath(name).name != name:
        raise FormatError(source, f"filename {name!r:.100} must be the name of a file in the folder")
    graph = read_onnx(path / name)
    found = GenaiFolder(
        path=path,
        config=config,
        model=graph,
        # GenAI's name for what runs like any other decoder says nothing; llmkit's graphs have the name of the family.
        architecture=graph.name if graph.producer == "llmkit" else str(model.get("type", "")),
        n_context=_integer(model, "context_length", source),
        n_vocab=_integer(model, "vocab_size", source),
        n_layers=_integer(decoder, "num_hidden_layers", source),
        ends=_ends(model.get("eos_token_id"), source),
    )
    _check_graph(found, decoder)
    return found


def _part(values: Mapping[str, Any], key: str, source: Path) -> dict[str, Any]:
    found = values.get(key)
    if not isinstance(found, dict):
        raise FormatError(source, f"{key}: expected an object, found {json_kind(found)}")
    return found


def _integer(values: Mapping[str, Any], key: str, source: Path) -> int:
    found = values.get(key)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < 1 << 31:
        raise FormatError(source, f"{key} must be a positive number, found {found!r:.100}")
    return found


def _ends(value: object, source: Path) -> frozenset[int]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(id, bool) or not isinstance(id, int) or id < 0 for id in found):
        raise FormatError(source, f"eos_token_id must be a token id or a list of them, found {value!r:.100}")
    return frozenset(found)


def _check_graph(found: GenaiFolder, decoder: Mapping[str, Any]) -> None:
    """Raise FormatError where the graph is not what the settings say."""
    source, graph = found.path / CONFIG, found.model
    names = {**_part(decoder, "inputs", source), **_part(decoder, "outputs", source)}
    heads, width = (_integer(decoder, key, source) for key in ("num_key_value_heads", "head_size"))
    for key, given in (
        ("input_ids", graph.inputs),
        ("attention_mask", graph.inputs),
        ("position_ids", graph.inputs),
        ("past_key_names", graph.inputs),
        ("past_value_names", graph.inputs),
        ("logits", graph.outputs),
        ("present_key_names", graph.outputs),
        ("present_value_names", graph.outputs),
    ):
        name = names.get(key)
        if name is None:
            continue
        if not isinstance(name, str):
            raise FormatError(source, f"{key} must be a name, found {name!r:.100}")
        wanted = [name.replace("%d", str(i)) for i in range(found.n_layers)] if "%d" in name else [name]
        for each in wanted:
            if each not in given:
                kind = "input" if given is graph.inputs else "output"
                raise FormatError(source, f"{key} says {each!r}, and {graph.path.name} has no such {kind}")
            shape = given[each]
            if "%d" in name and len(shape) == 4 and not (_fits(shape[1], heads) and _fits(shape[3], width)):
                raise FormatError(
                    source,
                    f"num_key_value_heads {heads} and head_size {width} contradict {graph.path.name}, where {each!r} "
                    f"has shape {list(shape)}",
                )
        if "%d" in name and name.replace("%d", str(found.n_layers)) in given:
            raise FormatError(source, f"num_hidden_layers {found.n_layers}, and {graph.path.name} has more")
    logits = graph.outputs.get(str(names.get("logits", "logits")), ())
    if logits and not _fits(logits[-1], found.n_vocab):
        raise FormatError(
            source,
            f"vocab_size {found.n_vocab} contradicts {graph.path.name}, which has logits of shape {list(logits)}",
        )


def _fits(size: int | str | None, expected: int) -> bool:
    return not isinstance(size, int) or size == expected
