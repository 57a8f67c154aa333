"""Inspecting SafeTensors files and folders, with and without the configuration of a Hugging Face checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llmkit.errors import LlmkitError
from llmkit.formats.checkpointfiles import cached_repo
from llmkit.formats.safetensors import read_header
from llmkit.inspection.records import ChatTemplate, Hyperparameters, Inspection, Tokenizer
from llmkit.types import TensorInfo


def inspect_safetensors(path: Path) -> Inspection:
    """What one SafeTensors file holds."""
    header = read_header(path)
    return Inspection(
        kind="safetensors",
        path=path,
        files=((path, path.stat().st_size),),
        tensors=tuple(header.tensors.values()),
        metadata=dict(header.metadata),
    )


def inspect_safetensors_folder(folder: Path, names: list[str]) -> Inspection:
    """What the SafeTensors files `names` of a folder without config.json hold together."""
    tensors: list[TensorInfo] = []
    metadata: dict[str, Any] = {}
    for name in names:
        header = read_header(folder / name)
        tensors += header.tensors.values()
        metadata.update(header.metadata)
    twice = len(tensors) - len({t.name for t in tensors})
    notes = ["no config.json: the architecture is not known"]
    if twice:
        notes.append(f"{twice:,} tensor names occur in more than one file; all of them count")
    return Inspection(
        kind="safetensors-folder",
        path=folder,
        files=tuple((folder / n, (folder / n).stat().st_size) for n in names),
        tensors=tuple(tensors),
        metadata=metadata,
        notes=tuple(notes),
    )


def inspect_checkpoint(folder: Path) -> Inspection:
    """What a Hugging Face checkpoint folder holds. Raises what `open_checkpoint` raises."""
    from llmkit.convert.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    config = _model_config(checkpoint.config)
    notes: list[str] = []
    tokenizer, templates = _tokenizer(folder, notes)
    quantization = checkpoint.config.get("quantization_config")
    if isinstance(quantization, dict):
        notes.append(f"the weights are quantised already ({quantization.get('quant_method', 'method not named')})")
    architecture, model_class = _architecture(checkpoint.config)
    return Inspection(
        kind="checkpoint",
        path=folder,
        files=tuple((f, f.stat().st_size) for f in checkpoint.files),
        tensors=tuple(checkpoint.tensors.values()),
        architecture=architecture,
        model_class=model_class,
        name=_name(checkpoint.config, folder),
        hyperparameters=_hyperparameters(config),
        tokenizer=tokenizer,
        templates=templates,
        notes=tuple(notes),
    )


def _model_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config; multimodal ones have it under `text_config`."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _architecture(config: dict[str, Any]) -> tuple[str | None, str | None]:
    """The model type and the first class that implements it."""
    model_type = config.get("model_type")
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None
    return model_type if isinstance(model_type, str) else None, name


def _name(config: dict[str, Any], folder: Path) -> str:
    """The repository's name in a cache snapshot, else the folder's."""
    resolved = folder.resolve()
    return cached_repo(resolved) or resolved.name


def _hyperparameters(config: dict[str, Any]) -> Hyperparameters:
    def integer(*names: str) -> int | None:
        for name in names:
            value = config.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    # transformers 5 writes rope_parameters; before, rope_theta and rope_scaling stood at the top level.
    rope = config.get("rope_parameters") if isinstance(config.get("rope_parameters"), dict) else {}
    scaling = config.get("rope_scaling") if isinstance(config.get("rope_scaling"), dict) else rope
    base = rope.get("rope_theta", config.get("rope_theta")) if isinstance(rope, dict) else None
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    n_heads = integer("num_attention_heads", "n_head")
    return Hyperparameters(
        n_context=integer("max_position_embeddings", "n_positions", "n_ctx", "seq_length"),
        n_layers=integer("num_hidden_layers", "n_layer", "num_layers"),
        n_embd=integer("hidden_size", "n_embd", "d_model"),
        n_ff=integer("intermediate_size", "n_inner", "ffn_hidden_size"),
        n_heads=n_heads,
        n_kv_heads=integer("num_key_value_heads") or n_heads,
        n_vocab=integer("vocab_size"),
        n_experts=integer("num_local_experts", "num_experts", "n_routed_experts"),
        n_experts_used=integer("num_experts_per_tok"),
        rope_base=float(base) if isinstance(base, int | float) and math.isfinite(base) else None,
        rope_scaling=kind if isinstance(kind, str) and kind != "default" else None,
    )


def _tokenizer(folder: Path, notes: list[str]) -> tuple[Tokenizer | None, tuple[ChatTemplate, ...]]:
    """The tokenizer and templates as far as they can be read: what cannot is told in `notes`."""
    from llmkit.convert.tokenizer.chat_template import chat_template_metadata
    from llmkit.convert.tokenizer.files import read_tokenizer_files

    try:
        files = read_tokenizer_files(folder)
    except LlmkitError as error:
        notes.append(f"tokenizer not readable: {error}")
        return None, ()
    found: list[ChatTemplate] = []
    try:
        for key, value in chat_template_metadata(files, notes).items():
            if isinstance(value.data, str):
                name = key.removeprefix("tokenizer.chat_template").lstrip(".") or "default"
                found.append(ChatTemplate(name, value.data))
    except LlmkitError as error:
        notes.append(f"chat template not readable: {error}")
    model = source = n_tokens = None
    if files.tokenizer is not None:
        inner = files.tokenizer.get("model")
        inner = inner if isinstance(inner, dict) else {}
        kind = inner.get("type")
        model, source = kind if isinstance(kind, str) else None, "tokenizer.json"
        vocab, added = inner.get("vocab"), files.tokenizer.get("added_tokens")
        if isinstance(vocab, dict) and isinstance(added, list):
            extra = {a.get("content") for a in added if isinstance(a, dict)} - {None}
            n_tokens = len(vocab) + len([a for a in extra if isinstance(a, str) and a not in vocab])
        elif isinstance(vocab, dict | list):
            n_tokens = len(vocab)
    elif (folder / "tokenizer.model").is_file():
        model, source = "SentencePiece", "tokenizer.model"
    if source is None:
        notes.append("no tokenizer.json and no tokenizer.model")
        return None, tuple(found)
    bos, eos = (_token_text(files.config.get(key)) for key in ("bos_token", "eos_token"))
    return Tokenizer(model=model, file=source, n_tokens=n_tokens, bos=bos, eos=eos), tuple(found)


def _token_text(token: object) -> str | None:
    """A token stands as its text or as an object with its text under `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
