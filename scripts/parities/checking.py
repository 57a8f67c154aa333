"""One family from its row to a verdict."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llmkit
from llmkit.convert.archs import ConfigReader, find_family
from llmkit.types import TensorType
from parities.back import compare_way_back
from parities.logits import LogitsResult, compare_logits, compare_onnx
from parities.row import Row
from parities.states import StatesResult, compare_states
from parities.tiny import make
from parities.tokens import compare_tokens


@dataclass(frozen=True)
class Result:
    """What comparing one family found; `seconds` are those of llmkit's conversion. Encoders have states, not logits.

    `onnx` is the model on ONNX Runtime GenAI, of families that llmkit converts to it. `back` says in words what a
    checkpoint made from the file has otherwise than the one that the file was made from.
    """

    logits: LogitsResult | StatesResult
    tokens: list[str]
    back: list[str]
    seconds: float
    onnx: LogitsResult | None

    @property
    def is_good(self) -> bool:
        is_good = self.logits.is_good and (self.onnx is None or self.onnx.is_good)
        return is_good and not self.tokens and not self.back


def check(name: str, row: Row, folder: Path) -> Result:
    """Make the tiny model of a row in `folder`, convert it to f32 beside it, and compare."""
    model = make(name, row, folder)
    started = time.perf_counter()
    result = llmkit.convert(folder, "gguf-f32", output=gguf_of(folder))
    seconds = time.perf_counter() - started
    gguf = result.path
    back = compare_way_back(model, folder, gguf, row)
    onnx = _compare_onnx(model, folder)
    if TensorType.MXFP4 in result.plan.types:
        # llama.cpp multiplies quantised weights by activations that it rounds to 8 bits.
        decoded = folder.with_name(f"{folder.name}-decoded.gguf")
        gguf = llmkit.quantize(gguf, "f32", output=decoded, allow_requantize=True).path
    # Last, since it puts llama.cpp's GELU into the model.
    compare = compare_states if row.encoder else compare_logits
    found = compare(model, gguf, model.config.get_text_config().vocab_size)
    return Result(found, compare_tokens(folder, gguf, row.tokenizer, special=row.encoder), back, seconds, onnx)


def _compare_onnx(model: Any, folder: Path) -> LogitsResult | None:
    """None for a family that has no structure to make a graph of."""
    family = find_family(ConfigReader(folder / "config.json", json.loads((folder / "config.json").read_text())))
    if family.structure is None:
        return None
    converted = llmkit.convert(folder, "onnx-fp32", output=folder.with_name(f"{folder.name}-onnx")).path
    return compare_onnx(model, converted, model.config.get_text_config().vocab_size)


def folder_name(name: str) -> str:
    """The folder for a row's model. general.name follows from it, by which llama.cpp knows Phi-3's tokenizer."""
    return name.replace(", ", "-").replace(" ", "-")


def gguf_of(folder: Path, ours: bool = True) -> Path:
    """The file made from a checkpoint, by llmkit or by the peer."""
    return folder.with_name(f"{folder.name}-{'llmkit' if ours else 'peer'}.gguf")
