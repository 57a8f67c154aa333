"""Reading a LoRA adapter: a folder with adapter_config.json and adapter_model.safetensors.

A matrix W [out, in] becomes W + scale * B A with A [r, in] and B [out, r]; an embedding [tokens, width], of which
lora_embedding_A is [r, tokens] and lora_embedding_B [width, r], becomes W + scale * (B A) transposed. The scale is
alpha / r, or alpha / sqrt(r) with rsLoRA. Source: PEFT's documentation of LoRA and of its checkpoint format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.errors import FormatError, ModelNotFoundError, UnsupportedError
from llmkit.formats.safetensors import read_header
from llmkit.formats.strictjson import read_json_object
from llmkit.types import TensorInfo

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_FACTOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.[^.]+)??(\.weight)?")
_PLAIN: Final = re.compile(r"[\w.]+")  # a module's name, not an expression for several

# Settings of other methods that share the format: what they must be here.
_ABSENT: Final = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "biases of its own",
    "layer_replication": "replicated layers",
    "target_parameters": "adapters of parameters (mixtures of experts)",
    "trainable_token_indices": "single trained tokens",
}


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one tensor: `scale` * `b` @ `a`, transposed if it `is_transposed`.

    name: of the tensor in the base model's checkpoint. a, b: [r, in] and [out, r].
    """

    name: str
    a: TensorInfo
    b: TensorInfo
    scale: float
    is_transposed: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the tensor that this changes."""
        shape = self.b.shape[0], self.a.shape[1]
        return shape[::-1] if self.is_transposed else shape


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as its headers describe it; no weight has been read.

    changes: by the name of the tensor they change. replaced: tensors that were trained whole. alpha: the setting from
    which most scales follow. base: what adapter_config.json calls the base model.
    """

    folder: Path
    changes: Mapping[str, LowRank]
    replaced: Mapping[str, TensorInfo]
    alpha: float
    base: str | None


def parse_lora(text: str) -> tuple[Path, float]:
    """What `--lora PATH[:SCALE]` means. Raises UnsupportedError for a scale that is no number."""
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        number = float(scale)
    except ValueError:
        raise UnsupportedError(f"--lora {text}: {scale!r} is no scale; write PATH:0.5") from None
    if not math.isfinite(number):
        raise UnsupportedError(f"--lora {text}: the scale must be finite")
    return Path(path), number


def read_adapter(folder: Path, strength: float = 1.0) -> Adapter:
    """Read the adapter in `folder`; `strength` multiplies all its changes.

    Raises ModelNotFoundError if there is none, UnsupportedError for methods other than plain LoRA, FormatError for what
    is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelNotFoundError(f"{folder}: no {CONFIG} here; expected a LoRA adapter as PEFT saves it")
    config = ConfigReader(path, read_json_object(path))
    _check_method(config)
    tensors = _tensors(folder)
    alpha = config.number("lora_alpha")
    sides: dict[str, dict[str, TensorInfo]] = {}
    embeddings: set[str] = set()
    replaced: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        plain = name.removeprefix(_PREFIX)
        found = _FACTOR.fullmatch(plain)
        if found is None:
            # PEFT saves embeddings as they were before beside what changes them; anything else was trained whole.
            if ".base_layer." not in plain:
                replaced[plain] = replace(info, name=name)
            continue
        sides.setdefault(found["module"], {})[found["side"]] = info
        if found["embedding"]:
            embeddings.add(found["module"])
    fan_in_fan_out = config.boolean("fan_in_fan_out", False)
    changes = {
        f"{module}.weight": _change(module, pair, config, alpha, strength, module in embeddings or fan_in_fan_out)
        for module, pair in sides.items()
    }
    if not changes and not replaced:
        raise FormatError(folder / WEIGHTS, "holds no tensors")
    base = config.values.get("base_model_name_or_path")
    return Adapter(folder, changes, replaced, alpha, base if isinstance(base, str) else None)


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    path = folder / WEIGHTS
    if not path.is_file():
        other = folder / "adapter_model.bin"
        hint = f"; {other.name} is a pickle: load and save the adapter with PEFT once" if other.is_file() else ""
        raise ModelNotFoundError(f"{folder}: no {WEIGHTS} here{hint}")
    return read_header(path).tensors


def _check_method(config: ConfigReader) -> None:
    config.require("peft_type", ("LORA",), "LORA")
    config.require("bias", ("none",), "none")
    for key, what in _ABSENT.items():
        if config.values.get(key):
            raise UnsupportedError(f"{config.path}: {key} {excerpt(config.values[key])}: llmkit does not merge {what}")


def _change(
    module: str,
    pair: Mapping[str, TensorInfo],
    config: ConfigReader,
    alpha: float,
    strength: float,
    is_transposed: bool,
) -> LowRank:
    for side in "AB":
        if side not in pair:
            other = pair["B" if side == "A" else "A"]
            raise FormatError(other.path, f"has no lora_{side} beside it", tensor=other.name)
    a, b = pair["A"], pair["B"]
    for info in (a, b):
        if len(info.shape) != 2 or info.dtype not in ("F32", "F16", "BF16"):
            raise UnsupportedError(
                f"{info.path}: tensor {info.name!r} is {info.dtype} {list(info.shape)}; expected a matrix of floats"
            )
    if a.shape[0] != b.shape[1] or not a.shape[0]:
        raise FormatError(b.path, f"shape {list(b.shape)} does not fit that of A, {list(a.shape)}", tensor=b.name)
    rank = a.shape[0]
    numerator = _of_module(module, config, "alpha_pattern", alpha)
    scale = numerator / (math.sqrt(rank) if config.boolean("use_rslora", False) else rank)
    return LowRank(f"{module}.weight", a, b, strength * scale, is_transposed)


def _of_module(module: str, config: ConfigReader, key: str, default: float) -> float:
    """The entry of a pattern for a module: the first whose name the module's ends in."""
    for name, value in config.object(key).items():
        if not _PLAIN.fullmatch(name):
            raise UnsupportedError(f"{config.path}: {key}: {excerpt(name)} is an expression; llmkit reads names only")
        if module == name or module.endswith(f".{name}"):
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            raise FormatError(config.path, f"{key}: {name} must be a number, found {excerpt(value)}")
    return default
