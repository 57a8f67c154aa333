"""What users write for targets, sizes and outputs, and what it means."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from llmkit.errors import LlmkitError, OutputError, UnsupportedError

if TYPE_CHECKING:
    from llmkit.convert.frameworks.base import FrameworkTarget
    from llmkit.convert.onnx.recipes import OnnxRecipe
    from llmkit.quantize.recipes import Recipe
    from llmkit.types import TensorType

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True)
class CheckpointTarget:
    """A checkpoint of SafeTensors files, in one float type, or that which suits the source."""

    type: TensorType | None


@dataclass(frozen=True, slots=True)
class AdapterTarget:
    """A LoRA adapter in GGUF."""


Target: TypeAlias = "Recipe | AdapterTarget | CheckpointTarget | OnnxRecipe | FrameworkTarget"


def parse_target(target: str) -> Target:
    """What `gguf-<type>`, `onnx-<precision>` and the others mean; UnsupportedError lists what there is."""
    from llmkit.convert.frameworks.registry import FRAMEWORKS, find_framework_target
    from llmkit.convert.onnx.recipes import RECIPES as ONNX_RECIPES
    from llmkit.convert.onnx.recipes import find_onnx_recipe
    from llmkit.quantize.recipes import RECIPES, SHORT_NAMES, find_recipe
    from llmkit.types import TensorType

    container, _, type = target.lower().partition("-")
    framework = find_framework_target(target.lower())
    if framework is not None:
        return framework
    if container == "gguf" and type == "lora":
        return AdapterTarget()
    if container == "onnx" and type:
        return find_onnx_recipe(type)
    if container == "gguf" and type:
        return find_recipe(type)
    if container == "safetensors" and type in ("", "f32", "f16", "bf16"):
        return CheckpointTarget(TensorType[type.upper()] if type else None)
    targets = [f"gguf-{name}" for name in [*SHORT_NAMES, *RECIPES]]
    known = ", ".join(
        [
            *targets,
            "gguf-lora",
            *(f"onnx-{name}" for name in ONNX_RECIPES),
            "safetensors",
            *(f"safetensors-{name}" for name in ("f32", "f16", "bf16")),
            *(f"{name}-{precision}" for name, found in FRAMEWORKS.items() for precision in found.precisions),
        ]
    )
    raise UnsupportedError(f"unknown target {target!r}; known: {known}")


def parse_recipe(type: str) -> Recipe:
    """The recipe called `type`, such as q4_k_m; `gguf-` may stand before it. Raises UnsupportedError."""
    from llmkit.quantize.recipes import find_recipe

    return find_recipe(type.lower().removeprefix("gguf-"))


def parse_bytes(size: int | str) -> int:
    """Bytes of "1GiB", "512MiB", "2GB", "1000000"; raises LlmkitError for anything else."""
    match = (
        re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([KMG]?I?)B?\s*", size.upper()) if isinstance(size, str) else None
    )
    if match and match[2] in _UNITS:
        size = int(float(match[1]) * _UNITS[match[2]])
    if isinstance(size, int) and size > 0:
        return size
    raise LlmkitError(f"{size!r} is not a size; write it as 512MiB, 1GiB or 2GB")


def output_path(output: str | os.PathLike[str] | None, default: Path) -> Path:
    """The file that `output` means, which may be a folder for one of the default name. Raises OutputError."""
    if output is None:
        return default
    text = os.fspath(output)
    if text == "-":
        raise OutputError("a GGUF file cannot go to standard output: its header is written last")
    if Path(text).is_dir():
        return Path(text) / default
    if text.endswith(os.sep):
        raise OutputError(f"{text}: no such folder")
    return Path(text)


def thread_count(threads: int | None) -> int:
    """`threads` if it is possible, or one per CPU of this process. Raises LlmkitError."""
    if threads is None:
        try:
            return len(os.sched_getaffinity(0))
        except AttributeError:  # macOS
            return os.cpu_count() or 1
    if threads < 1:
        raise LlmkitError(f"threads is {threads}; at least 1 is needed")
    return threads
