"""The way back: the checkpoint that llmkit makes from its own file against the one that the file was made from."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

import llmkit
from llmkit.errors import LlmkitError
from llmkit.formats.gguf import open_gguf
from parities.gelu import use_ggml_gelu
from parities.row import Row
from parities.tokens import compare_tokenizers


def compare_way_back(model: Any, original: Path, gguf: Path, row: Row) -> list[str]:
    """What differs: of the file made from the checkpoint made from `gguf`, of tokens, of what transformers computes.

    original: the checkpoint that `gguf` was made from, which has the tokenizer.
    """
    folder = gguf.with_name(f"{gguf.stem}-back")
    try:
        llmkit.convert(gguf, "safetensors", output=folder)
        again = llmkit.convert(folder, "gguf-f32", output=gguf.with_name(f"{gguf.stem}-again.gguf")).path
    except LlmkitError as error:
        return [str(error)]
    with open_gguf(gguf) as a, open_gguf(again) as b:
        names, keys = sorted({*a.tensors, *b.tensors}), sorted({*a.metadata, *b.metadata})
        found = [
            f"tensor {name}"
            for name in names
            if name not in a.tensors or name not in b.tensors or not np.array_equal(a.raw(name), b.raw(name))
        ]
        found += [
            f"metadata {key}"
            for key in keys
            if not key.startswith("general.") and a.metadata.get(key) != b.metadata.get(key)
        ]
    again.unlink()
    found += [f"tokens of {text!r}" for text in compare_tokenizers(original, folder, row.tokenizer)]
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    # Otherwise transformers does not have the family.
    if row.rewrite is None or kind == model.config.get_text_config().model_type:
        found += _compare_outputs(model, folder, row)
    return found


def _compare_outputs(model: Any, folder: Path, row: Row) -> list[str]:
    import torch
    import transformers

    auto = transformers.AutoModel if row.encoder else transformers.AutoModelForCausalLM
    loaded = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True)
    if _gelu(loaded) != _gelu(model):
        # The file does not say which GELU it is: with the same in both, the rest must be the same.
        model = deepcopy(model)
        use_ggml_gelu(model)
        use_ggml_gelu(loaded)
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        before, after = (m.eval()(ids)[0] for m in (model, loaded))
    far = float((before - after).abs().max())
    return [] if far < 1e-4 else [f"transformers' output is {far:.1e} away"]


def _gelu(model: Any) -> set[str]:
    """Which kinds of GELU a model has."""
    return {repr(module) for module in model.modules() if "GELU" in type(module).__name__}
