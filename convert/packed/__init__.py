"""Quantised checkpoints: tensors that are put together from several stored ones, row by row, as they are read.

base      what such a tensor is, and how a method finds its parts
reader    reads runs and columns of stored tensors
views     reads the rows of a view of such a tensor
bits, floats8, scaled   what several methods share
fp8, gptq, awq, compressed, bnb, mxfp4   one method each, of config.json's `quantization_config`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from llmkit.convert.archs.config import ConfigReader, excerpt
from llmkit.convert.packed import awq, bnb, compressed, fp8, gptq, mxfp4
from llmkit.convert.packed.base import PackedTensor, Packing, Unpacked, unsupported
from llmkit.types import TensorInfo, TensorType

__all__ = ["METHODS", "PackedTensor", "unpack"]

# quant_method -> how its tensors are put together
METHODS: Final[Mapping[str, Callable[[Packing], Unpacked]]] = {
    "awq": awq.unpack,
    "bitsandbytes": bnb.unpack,
    "compressed-tensors": compressed.unpack,
    "fbgemm_fp8": fp8.unpack,
    "fp8": fp8.unpack,
    "gptq": gptq.unpack,
    "mxfp4": mxfp4.unpack,
}
_CONFIG: Final = "quantization_config"


def unpack(
    config: ConfigReader, tensors: Mapping[str, TensorInfo], notes: list[str]
) -> Mapping[str, TensorInfo | PackedTensor]:
    """The tensors of a checkpoint, those that are quantised under the names and shapes of the weights they stand for.

    Reads no weight, but the small tensors that tell how weights are stored. Raises UnsupportedError for a method that
    is not known, FormatError for tensors that do not fit each other.
    """
    place = config if _CONFIG in config else config.within("text_config")
    if _CONFIG not in place:
        return tensors
    settings = place.within(_CONFIG)
    method = settings.values.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise unsupported(
            settings, f"quantised by {excerpt(method)}, which is not known to llmkit (known: {', '.join(METHODS)})"
        )
    found = METHODS[method](Packing(settings, tensors))
    if not found.tensors:
        return tensors
    _note(method, found, notes)
    rest = {name: info for name, info in tensors.items() if name not in found.used}
    return {**rest, **{tensor.name: tensor for tensor in found.tensors}}


def _note(method: str, found: Unpacked, notes: list[str]) -> None:
    count = Counter(tensor.type is TensorType.F32 for tensor in found.tensors)
    if count[True]:
        notes.append(
            f"the checkpoint is quantised ({method}): {count[True]} tensors are decoded as they are read, and the file "
            "keeps the loss that they have had"
        )
